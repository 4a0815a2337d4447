"""Commands of the command line that change a fitted model: fresh data, a user forgotten or shown, a new fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_rerank.options import (
    CacheFolder,
    Columns,
    Device,
    Encoding,
    ImpressionsFile,
    ModelFolder,
    Quiet,
    TimeUnitOption,
    check_output,
    column_mapping,
    note,
)
from llm_rerank.types import DataError

if TYPE_CHECKING:
    from llm_rerank.recommendation.reranker import Reranker


def update(
    model: ModelFolder,
    interactions: Annotated[
        Path | None, typer.Option("--interactions", help="New events: user_id, item_id, timestamp, …; not those known.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option("--items", help="New items, or known ones with new columns: item_id, title, …")
    ] = None,
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    r"""Take in new events and items, without training.

    Histories, sales and co-occurrence know them at once, and new items can be recommended; what waits for a refit is
    said. The folder is written back in one step. A service that runs on the folder takes it over.

    \b
    llm-rerank update shop --interactions today.csv
    llm-rerank update shop --items catalogue.csv --column sku=item_id
    """
    from llm_rerank.folders import current_name
    from llm_rerank.recommendation.reranker import Reranker

    if _has_log(model):
        # what a service took in before these tables comes before them, and does not undo them when it is played
        from llm_rerank.recommendation.live import LiveShop

        with LiveShop(model, device=device) as shop:
            if shop.is_behind:
                shop.compact()
    version = current_name(model)
    reranker = Reranker.load(model, device=device, verbose=False)
    report = reranker.update(
        interactions,
        items,
        columns=column_mapping(column),
        time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
        encoding=encoding,
    )
    _write_back(reranker, model, version)
    note(str(report), quiet)


def forget(
    model: ModelFolder,
    user: Annotated[list[str], typer.Argument(help="User ids.")],
    cache_folder: CacheFolder = None,
    device: Device = "auto",
) -> None:
    r"""Forget users: their events, attributes, and what was counted or quoted of them.

    Says what was rewritten at once, what still carries influence until `llm-rerank refit`, and what was not reached.
    Other copies of the model, and your own tables, are yours to clean. With --cache-folder, the one of the fit, that is
    emptied where the users wrote reviews or searches.

    \b
    llm-rerank forget shop 4711
    """
    from llm_rerank.folders import current_name, remove_leftovers
    from llm_rerank.recommendation.privacy import EVENT_LOG, with_not_removed
    from llm_rerank.recommendation.reranker import Reranker

    if _has_log(model):
        from llm_rerank.recommendation.live import LiveShop

        with LiveShop(model, device=device) as shop:
            report = shop.forget(user, cache_folder=cache_folder)
    else:
        version = current_name(model)
        reranker = Reranker.load(model, device=device, verbose=False)
        report = reranker.forget(user, cache_folder=cache_folder)
        report = replace(report, not_reached=tuple(place for place in report.not_reached if place != EVENT_LOG))
        if report.forgotten:
            _write_back(reranker, model, version)
        report = with_not_removed(report, remove_leftovers(model))
    typer.echo(str(report))


def export(
    model: ModelFolder,
    user: Annotated[str, typer.Argument(help="User id.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file to write; without it to the terminal.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Give all that is held of a user, as JSON: events, attributes, and what a service has logged and shown.

    Nothing of other users is in it.
    """
    from llm_rerank.recommendation.reranker import Reranker
    from llm_rerank.storage import atomic_path

    if out is not None:
        check_output(out)
    if _has_log(model):
        from llm_rerank.recommendation.live import LiveShop

        with LiveShop(model, device=device) as shop:
            held = shop.export(user)
        if held is None:
            raise DataError(f"nothing is held of user {user!r}; check the id and its type")
    else:
        held = Reranker.load(model, device=device, verbose=False).export(user)
    text = json.dumps(held, indent=1, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    with atomic_path(out) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8", errors="surrogatepass")
    note(f"written to {out}")


def refit(
    model: ModelFolder,
    impressions: ImpressionsFile = None,
    column: Columns = None,
    time_unit: TimeUnitOption = "auto",
    encoding: Encoding = None,
    cache_folder: CacheFolder = None,
    retention_days: Annotated[
        float | None, typer.Option("--retention-days", help="Drop events older than this; default: as before.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    r"""Fit everything again on the events and items of now, with the settings of the fit.

    Removes what forgotten users still shaped, and lets every part learn from what came since. The folder keeps the
    earlier fit until the new one is whole.

    \b
    llm-rerank refit shop
    """
    from llm_rerank.folders import check_target, current_name
    from llm_rerank.recommendation.reranker import Reranker

    check_target(model)
    if _has_log(model):
        if impressions is not None or cache_folder is not None or retention_days is not None:
            raise DataError(
                f"{model} has a log of events, as a service keeps it; its refit takes no impressions, cache folder or "
                "retention"
            )
        from llm_rerank.recommendation.live import LiveShop

        with LiveShop(model, device=device) as shop:
            report = shop.refit().report()
            shop.compact()  # what the log holds beyond its time goes too
        note(str(report), quiet)
    else:
        version = current_name(model)
        loaded = Reranker.load(model, device=device, verbose=False)
        config = replace(loaded.config, cache_folder=None if cache_folder is None else str(cache_folder))
        if retention_days is not None:
            config = replace(config, retention_days=retention_days)
        reranker = Reranker.from_saved(replace(loaded.saved, config=config), verbose=not quiet)
        reranker.refit(
            impressions,
            columns=column_mapping(column),
            time_unit=time_unit,  # type: ignore[arg-type]  # the library checks it and names the choices
            encoding=encoding,
        )
        _write_back(reranker, model, version)
    note(f"saved to {model}", quiet)


def _write_back(reranker: Reranker, folder: Path, version: str) -> None:
    """Write the state back as the folder's content, unless that is another one by now."""
    from llm_rerank.folders import save_folder
    from llm_rerank.recommendation.saving import write_reranker

    reranker.expire()
    save_folder(folder, lambda place: write_reranker(place, reranker.saved), expected=version)
    if reranker.config.retention_days is not None and _has_log(folder):
        from llm_rerank.recommendation.live import LiveShop

        with LiveShop(folder, device=reranker.config.device) as shop:
            shop.compact()  # what the log holds beyond its time goes too


def _has_log(folder: Path) -> bool:
    """Tell whether a service has kept events beside the model."""
    from llm_rerank.recommendation.event_log import LOG_FILE

    return (folder / LOG_FILE).exists()
