"""The command line: files in, files out. Every command parses its words and calls one function of the library.

An error that the library raises on purpose is one line on stderr and exit code 2; Ctrl-C is exit code 130.
"""

from __future__ import annotations

import errno
import inspect
import io
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from llm_rerank.evaluation_commands import demo, evaluate
from llm_rerank.fit_commands import finetune, fit
from llm_rerank.live_commands import export, forget, refit, update
from llm_rerank.options import (
    At,
    Columns,
    Device,
    Diversity,
    Encoder,
    Encoding,
    HistoriesFile,
    ImpressionsFile,
    InteractionsFile,
    ItemsFile,
    MinRating,
    ModelFolder,
    NewThreshold,
    Output,
    TargetEvents,
    TimeUnitOption,
    UsersFile,
    check_output,
    column_mapping,
    diversity_setting,
    moment,
    note,
    reranker_config,
    threshold_rule,
    write_result,
)
from llm_rerank.serve_command import serve
from llm_rerank.types import DriftWarning, DroppedRowsWarning, RerankError


class ReportingGroup(TyperGroup):
    """Commands whose expected failures are one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a drifted batch, or dropped rows, are told in plain words, not as Python's warnings."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DriftWarning)
                warnings.simplefilter("always", DroppedRowsWarning)
                warnings.showwarning = _plainly(warnings.showwarning)
                return super().invoke(ctx)
        except RerankError as error:
            _stop(str(error), 2)
        except KeyboardInterrupt:
            _stop("interrupted; no output file was written", 130)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe went away: typer ends quietly
                raise
            _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)


app = typer.Typer(
    cls=ReportingGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Rerank a recommender's candidates with what items say and what users did.

    \b
    See it work           llm-rerank demo
    Look at your files    llm-rerank check orders.csv items.csv
    Fit                   llm-rerank fit orders.csv items.csv --out shop
    Rerank                llm-rerank rerank shop candidates.csv --out ranked.csv
    Take in fresh data    llm-rerank update shop --interactions today.csv
    Forget a user         llm-rerank forget shop 4711
    Fine-tune alone       llm-rerank finetune --interactions orders.csv --items items.csv --out tuned

    Tables are CSV, TSV, JSON lines or Parquet, gzipped or not. Events need user_id, item_id and timestamp; items need
    item_id and title. Other names: --column customer=user_id, as often as needed. Letters that look wrong: --encoding.
    Each command has its own --help.
    """,
)


@app.command()
def check(
    interactions: InteractionsFile,
    items: ItemsFile,
    users: UsersFile = None,
    impressions: ImpressionsFile = None,
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    encoder: Encoder = "default",
    target_event: TargetEvents = None,
    min_rating: MinRating = None,
) -> None:
    """Look at your files; change nothing.

    Says what is understood of them, what would be dropped, what is missing, and how long a fit would take. A problem
    that would stop a fit is told, with its remedy, and gives exit code 2.
    """
    from llm_rerank.recommendation.checking import check_shop

    config = reranker_config(encoder=encoder, target_events=target_event, min_rating=min_rating)
    result = check_shop(
        interactions,
        items,
        users=users,
        impressions=impressions,
        columns=column_mapping(column),
        time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
        encoding=encoding,
        config=config,
    )
    typer.echo(str(result))


def help_of(command: Callable[..., object]) -> str:
    r"""Give a command's docstring as its help; there \b keeps the lines of a paragraph, which raw strings spell out."""
    return inspect.cleandoc(command.__doc__ or "").replace("\\b", "\b")


for command in (demo, evaluate, fit, finetune, update, refit, forget, export, serve):
    app.command(help=help_of(command))(command)


@app.command()
def rerank(
    model: ModelFolder,
    candidates: Annotated[
        Path, typer.Argument(help="Candidates: user_id, item_id, optional upstream_score, any more.")
    ],
    out: Output = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Rows a user to return; default: all.")] = None,
    histories: HistoriesFile = None,
    at: At = None,
    on_unknown: Annotated[
        str, typer.Option("--on-unknown", help="Items absent from the catalogue: keep (last), drop, or raise.")
    ] = "keep",
    column: Columns = None,
    encoding: Encoding = None,
    diversity: Diversity = None,
    threshold: NewThreshold = None,
    device: Device = "auto",
) -> None:
    """Put each user's candidates in order.

    Many users at once. The result has rank, score, probability, kept, the score's parts, and your own columns.
    """
    from llm_rerank.data.writers import check_output

    out = None if out is None else check_output(out)
    reranker = _load(model, device, diversity, threshold)
    result = reranker.rerank(
        candidates,
        histories=histories,
        at=moment(at),
        k=k,
        on_unknown=on_unknown,
        columns=column_mapping(column),
        encoding=encoding,
    )
    write_result(result, out, cut_asked=reranker.config.threshold is not None)


@app.command()
def recommend(
    model: ModelFolder,
    user: Annotated[list[str] | None, typer.Argument(help="User ids; none: every known user.")] = None,
    out: Output = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Items a user.")] = 10,
    whole: Annotated[bool, typer.Option("--all", help="Every candidate that was retrieved, instead of k.")] = False,
    histories: HistoriesFile = None,
    at: At = None,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Offer what the user has had as well.")] = False,
    column: Columns = None,
    encoding: Encoding = None,
    diversity: Diversity = None,
    threshold: NewThreshold = None,
    device: Device = "auto",
) -> None:
    """Find items for users and rank them.

    A user nobody knows gets a newcomer's list.
    """
    from llm_rerank.data.writers import check_output

    out = None if out is None else check_output(out)
    reranker = _load(model, device, diversity, threshold)
    result = reranker.recommend(
        user or None,
        histories=histories,
        at=moment(at),
        k=None if whole else k,
        exclude_seen=not include_seen,
        columns=column_mapping(column),
        encoding=encoding,
    )
    write_result(result, out, cut_asked=reranker.config.threshold is not None)


@app.command()
def explain(
    model: ModelFolder,
    user: Annotated[str, typer.Argument(help="User id.")],
    item: Annotated[str, typer.Argument(help="Item id.")],
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help="Item ids, oldest first, instead of what is known of the user."),
    ] = None,
    at: At = None,
    versus: Annotated[
        str | None, typer.Option("--versus", help="Another item: say also why the one stands above or below it.")
    ] = None,
    upstream_score: Annotated[
        float | None,
        typer.Option("--upstream-score", help="What the upstream recommender gave the item; nan: not in its list."),
    ] = None,
    versus_upstream_score: Annotated[
        float | None, typer.Option("--versus-upstream-score", help="The same of the item of --versus.")
    ] = None,
    phrases: Annotated[
        bool, typer.Option("--phrases", help="Say also which words of the item mattered; needs the encoder of the fit.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="OUT", help="Write it as a small page that needs nothing else, too."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Say why an item has its score for a user.

    The parts add up to the score; below them stands what each item of the history did to it.
    """
    from llm_rerank.storage import atomic_path

    if html is not None:
        check_output(html)
    explanation = _load(model, device).explain(
        user,
        item,
        history=history or None,
        at=moment(at),
        versus=versus,
        phrases=phrases,
        upstream_score=upstream_score,
        versus_upstream_score=versus_upstream_score,
    )
    typer.echo(str(explanation))
    if html is not None:
        with atomic_path(html) as unfinished:
            unfinished.write_text(explanation.to_html(), encoding="utf-8", errors="replace")
        note(f"page written to {html}")


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a table in a file or a pipe is UTF-8, as one of --out is, and loses no letter; a terminal shows what it can
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace")
    app(prog_name="llm-rerank")


def _load(model: Path, device: str, diversity: str | None = None, threshold: str | None = None) -> Any:
    from dataclasses import replace

    from llm_rerank.recommendation.reranker import Reranker

    variety, rule = diversity_setting(diversity), threshold_rule(threshold)
    reranker = Reranker.load(model, device=device, verbose=False)
    if variety is not None:
        reranker.config = replace(reranker.config, diversity=variety)
    if rule is not None:
        reranker.config = replace(reranker.config, threshold=rule)
    return reranker


def _plainly(show: Callable[..., None]) -> Callable[..., None]:
    """Show warnings as before, but what was dropped or does not count as one line."""

    def shown(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, DroppedRowsWarning) or category is UserWarning:
            note(str(message))
        else:
            show(message, category, *rest, **named)

    return shown


def _as_option(mapping: re.Match[str]) -> str:
    return f"--column {shlex.quote(f'{mapping[1]}={mapping[2]}')}"


def _stop(line: str, code: int) -> NoReturn:
    line = re.sub(r"columns=\{'([^']+)': '([^']+)'\}", _as_option, line)  # the remedy in the words of this door
    line = line.replace("or None for every candidate", "or all: recommend --all, rerank without -k")
    line = re.sub(r"encoding='([^']+)'", r"--encoding \1", line)
    typer.echo(f"llm-rerank: {line}", err=True)
    raise typer.Exit(code)
