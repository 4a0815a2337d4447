"""Words of the command line: arguments and options shared by its commands, and what their values mean."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_rerank.types import DataError

if TYPE_CHECKING:
    import pandas as pd

    from llm_rerank.config import DiversityConfig, RerankerConfig, ThresholdConfig

InteractionsFile = Annotated[
    Path, typer.Argument(help="Events: user_id, item_id, timestamp, optional event, rating, …")
]
ItemsFile = Annotated[Path, typer.Argument(help="Catalogue: item_id, title, optional description, brand, price, …")]
ModelFolder = Annotated[Path, typer.Argument(help="Folder that `llm-rerank fit --out` wrote.")]
UsersFile = Annotated[Path | None, typer.Option("--users", help="Users' attributes: user_id and any columns.")]
ImpressionsFile = Annotated[
    Path | None,
    typer.Option(
        "--impressions", help="Lists that your recommender showed: user_id, item_id, timestamp, upstream_score."
    ),
]
HistoriesFile = Annotated[
    Path | None, typer.Option("--histories", help="Fresh events that stand for the history of the users in them.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="YOURS=OURS", help="Your column for ours: customer=user_id.")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Encoding of your files, such as cp1252 or gb18030; default: found.")
]
TimeUnitOption = Annotated[
    str, typer.Option("--time-unit", help="auto, s, ms, us, ns, datetime, or position (order only, no real time).")
]
Output = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File to write: .csv, .tsv, .jsonl or .parquet; without it CSV to the terminal."),
]
At = Annotated[
    str | None, typer.Option("--at", help="Moment of the decision: a date, or seconds; default: after the last event.")
]
Encoder = Annotated[
    str, typer.Option("--encoder", help="Folder or hub name of a sentence encoder; 'default' is built in; 'none'.")
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache-folder", help="Folder that keeps vectors, states and a checkpoint between fits.")
]
TargetEvents = Annotated[
    list[str] | None, typer.Option("--target-event", help="Kind of event that counts as a success; may be repeated.")
]
MinRating = Annotated[float | None, typer.Option("--min-rating", help="A rating below this is a dislike.")]
Threshold = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="RULE",
        help="What is kept; default: the top k. probability=0.02, f_beta=1.0, recall=0.8, precision=0.1 (a number); "
        "expected_value,gain=30,cost=0.5,take_rate=0.1; risk=missed_target,alpha=0.1,delta=0.1 (a guarantee; also "
        "false_positives, false_discovery).",
    ),
]
NewThreshold = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="RULE",
        help="What is kept; default: as fitted. probability=0.02, or expected_value,gain=30,cost=0.5,take_rate=0.1; "
        "other rules choose on held-out users, in the fit.",
    ),
]
_VARIETY = "Variety against relevance, 0 to 1; or settings such as strength=0.3,max_per_group=2,group_by=brand."
DiversityOfFit = Annotated[str | None, typer.Option("--diversity", help=f"{_VARIETY} Default: 0, relevance alone.")]
Diversity = Annotated[str | None, typer.Option("--diversity", help=f"{_VARIETY} Default: as fitted.")]
CandidatesPerSource = Annotated[
    int, typer.Option("--candidates-per-source", help="Items that each retriever brings for a user.")
]
SequenceChoice = Annotated[
    str, typer.Option("--sequence", help="Small nets over text and id. auto: kept where they pay; always; off.")
]
VectorsChoice = Annotated[
    str, typer.Option("--vectors", help="Your items' columns *_vector. auto: kept where they pay; always; off.")
]
SemanticChoice = Annotated[
    str, typer.Option("--semantic", help="What the encoder's vectors say. auto: kept where it pays; always; off.")
]
CrossEncoderChoice = Annotated[
    str,
    typer.Option(
        "--cross-encoder", help="auto: fine-tuned, kept where it pays on held-out users; always: kept; off: left out."
    ),
]
HistoryLength = Annotated[
    int, typer.Option("--history-length", help="Newest events of a user that the cross-encoder reads.")
]
CrossEncoderDepth = Annotated[
    int | None,
    typer.Option(
        "--cross-encoder-depth", help="Candidates of a user that the cross-encoder reads, best first; default: all."
    ),
]
TokenAttention = Annotated[
    bool,
    typer.Option("--token-attention", help="The cross-encoder reads the history's tokens too, 19 to 62 times as slow."),
]
FineTuneSteps = Annotated[
    int, typer.Option("--fine-tune-steps", help="Most steps of the fine-tuning; it stops where they no longer help.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn at random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of plan, decisions and progress.")]


def reranker_config(
    *,
    encoder: str,
    cache_folder: Path | None = None,
    target_events: Sequence[str] | None = None,
    diversity: str | None = None,
    **settings: Any,
) -> RerankerConfig:
    """Build the settings; encoder "none" is none, and without ``diversity`` relevance alone ranks."""
    from llm_rerank.config import RerankerConfig

    return RerankerConfig(
        encoder=None if encoder == "none" else encoder,
        cache_folder=None if cache_folder is None else str(cache_folder),
        target_events=tuple(target_events) if target_events else None,
        diversity=diversity_setting(diversity) or 0.0,
        **settings,
    )


def column_mapping(columns: Sequence[str] | None) -> dict[str, str] | None:
    """Read pairs such as customer=user_id."""
    mapping = {}
    for pair in columns or ():
        yours, equals, ours = pair.rpartition("=")
        if not (yours and equals and ours):
            raise DataError(f"--column is {pair!r}; write your column, =, and ours: --column customer=user_id")
        mapping[yours] = ours
    return mapping or None


def threshold_rule(text: str | None) -> ThresholdConfig | None:
    """Read a rule and its numbers, such as f_beta=1.0 or expected_value,gain=30,cost=0.5."""
    from llm_rerank.config import ThresholdConfig

    if text is None:
        return None
    first, *others = (part.strip().partition("=") for part in text.split(","))
    rule, equals, given = first
    values: dict[str, Any] = {}
    try:
        if equals:
            values["risk" if rule == "risk" else "value"] = given if rule == "risk" else float(given)
        for name, _, value in others:
            if name not in ("value", "gain", "cost", "take_rate", "risk", "alpha", "delta"):
                raise DataError(f"there is no {name!r}; known: gain, cost, take_rate, risk, alpha, delta")
            values[name] = value if name == "risk" else float(value)
        return ThresholdConfig(rule, **values)  # type: ignore[arg-type]  # it checks the name itself
    except ValueError as error:
        why = str(error) if isinstance(error, DataError) else "write a rule and its numbers: --threshold f_beta=1.0"
        raise DataError(f"--threshold is {text!r}: {why}") from None


def diversity_setting(text: str | None) -> float | DiversityConfig | None:
    """Read a strength, or pairs such as max_per_group=2,group_by=brand."""
    from llm_rerank.config import DiversityConfig

    if text is None:
        return None
    kinds = {"strength": float, "group_by": str}
    values: dict[str, Any] = {}
    try:
        if "=" not in text:
            return DiversityConfig(float(text)).strength
        for pair in text.split(","):
            name, _, value = pair.strip().partition("=")
            if name not in DiversityConfig.__dataclass_fields__:
                raise DataError(
                    f"--diversity names {name!r}; known settings: {', '.join(DiversityConfig.__dataclass_fields__)}"
                )
            values[name] = kinds.get(name, int)(value)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"--diversity is {text!r}; write a number from 0 to 1, or --diversity strength=0.3,max_per_group=2"
        ) from None
    return DiversityConfig(**values)


def moment(at: str | None) -> str | float | None:
    """Read seconds, or leave a date as it is, 20240531 too."""
    if at is None or re.fullmatch(r"\d{8}|\d{12}|\d{14}", at):
        return at
    try:
        return float(at)
    except ValueError:
        return at


def note(line: str, quiet: bool = False) -> None:
    """Say a line on stderr, beside what goes to stdout."""
    if not quiet:
        typer.echo(line, err=True)


def write_result(result: pd.DataFrame, out: Path | None, *, cut_asked: bool) -> None:
    """Write a ranked table to a file, or to stdout; say on stderr how files were read, and how it was cut.

    cut_asked: there is a rule, so that it is also said where nothing is cut.
    """
    from llm_rerank.data.writers import write_table
    from llm_rerank.recommendation.asking import DATA
    from llm_rerank.recommendation.decision_facts import DECISION, decision_sentence
    from llm_rerank.recommendation.drift import Drift

    if out is None:
        result.to_csv(sys.stdout, index=False)
    else:
        write_table(result, out)
        note(f"{len(result):,} rows written to {out}")
    for line in result.attrs[DATA]["notes"]:
        note(line)
    facts = result.attrs[DECISION]
    if cut_asked or facts["least_probability"] is not None or Drift.from_dict(facts["drift"]).is_news:
        note(decision_sentence(facts))


def check_output(out: Path) -> None:
    """Say before any work that a file cannot be written where it is wanted."""
    from llm_rerank.folders import check_writable

    if out.is_dir():
        raise DataError(f"output {out} is a folder; give the name of a file")
    if not out.parent.is_dir():
        raise DataError(f"output {out} lies in a folder that does not exist; make {out.parent} first")
    check_writable(out.parent)
