"""New and changed items in a fitted state: rows of the catalogue, their texts, and scorers that read them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.config import NumberFormat
from llm_rerank.data.columns import require_columns
from llm_rerank.data.frames import applicable, to_pandas
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.layouts import as_items
from llm_rerank.data.merging import with_items
from llm_rerank.data.schema import validate_items
from llm_rerank.data.values import is_missing, object_array, plain_column
from llm_rerank.data.vectors import merged_vectors
from llm_rerank.recommendation.inputs import ITEM_TOKENS
from llm_rerank.recommendation.state import Saved
from llm_rerank.types import (
    UNKNOWN,
    DataError,
    DataReport,
    Encoder,
    FloatArray,
    GrowingScorer,
    IntArray,
    Items,
    ObjectArray,
)

TEXTS_CHANGED = "texts of items changed after the cut was chosen, so the components score otherwise than they did then"
LABELS = ["brand", "categories"]
_NONE = np.empty(0, dtype=np.int64)
_ROW = "\N{ZERO WIDTH SPACE}row"  # a column of ours on its way through the validation


@dataclass(frozen=True)
class ItemChanges:
    """What came of a table of items: codes of new and of changed items, and the scorers that read texts again."""

    new: IntArray
    changed: IntArray
    grown: tuple[str, ...]


def with_item_table(
    saved: Saved, table: Any, columns: Mapping[str, str] | None, report: DataReport
) -> tuple[Saved, ItemChanges]:
    """Add items, and change those that are known.

    table: item_id, title for new items, any further columns. A cell that is missing, and a column that is not there,
    keep what was known; to take a text or a price away, give "", a vector, zeros. New columns may come; they are empty
    elsewhere.
    Raises DataError where a rule of the catalogue is broken, or a new item lacks its title.
    """
    old = saved.fitted.items
    frame, vectors, changed, beside_text = _merged(old, table, columns, report)
    new = np.arange(len(old), len(frame), dtype=np.int64)
    if not len(new) and not len(changed):
        return saved, ItemChanges(new, changed, ())
    ids: ObjectArray = old.ids
    if len(new):  # else the very same array, which codes are remembered by
        ids = np.concatenate([old.ids, object_array(frame["item_id"].tolist()[len(old) :])])
    items = Items(ids, frame.assign(item_id=ids), np.concatenate([old.texts, object_array([""] * len(new))]), vectors)
    statistics = saved.known_statistics
    saved = replace(saved, events=with_items(saved.events, len(items)), fitted=replace(saved.fitted, items=items))
    saved, _, grown = with_texts_read_again(saved, np.concatenate([changed, new]), len(old), beside_text)
    if len(new):
        _check_all_can_grow(saved, grown)
    items = saved.fitted.items
    # labels are counted over all items, which takes long in a large catalogue
    labelled_anew = any(items.frame[name].tolist() != old.frame[name].tolist() for name in LABELS)
    if saved.statistics is not None:
        saved = replace(saved, statistics=saved.statistics.with_items(items, labelled_anew=labelled_anew))
    elif statistics is not None:
        saved = saved.with_statistics(statistics.with_items(items, labelled_anew=labelled_anew))
    return saved, ItemChanges(new, changed, grown)


def with_texts_read_again(
    saved: Saved, codes: IntArray, n_known: int, beside_text: IntArray = _NONE
) -> tuple[Saved, IntArray, tuple[str, ...]]:
    """Render items anew with the reviews of now, and let every scorer that can read what changed by that.

    codes: rising. n_known: from this code on items are new to the scorers. beside_text: codes of those with another
    title or vector, which scorers read even where the text stayed.
    Returns the state, the codes that were read, and the names of the scorers. The guarantee of a cut goes where they
    read an item anew that they had read before. Raises StorageError where an encoder cannot be loaded.
    """
    if not len(codes):
        return saved, codes, ()
    fitted, old = saved.fitted, saved.fitted.items
    encoder = encoder_of(saved)
    texts = old.texts.copy()
    texts[codes] = _rendered(saved, codes, encoder)
    read = codes[(texts[codes] != old.texts[codes]) | np.isin(codes, beside_text) | (codes >= n_known)]
    if not len(read):
        return saved, read, ()
    items = replace(old, texts=texts)
    components, names = [], []
    for component in fitted.components:
        scorer = component.scorer
        if isinstance(scorer, GrowingScorer):
            component = replace(component, scorer=_with_encoder(scorer, encoder).grown(items, read))
            names.append(component.name)
        components.append(component)
    fitted = replace(fitted, items=items, components=tuple(components))
    saved = replace(saved, fitted=fitted)
    if (read < n_known).any():
        saved = without_guarantees(saved, TEXTS_CHANGED)
    return saved, read, tuple(names)


def without_guarantees(saved: Saved, reason: str) -> Saved:
    """Take back the guarantee of each stage's cut, where there is one, in the report of the fit too."""
    fitted = saved.fitted
    stage, upstream = fitted.stage.without_guarantee(reason), fitted.upstream_stage
    upstream = None if upstream is None else upstream.without_guarantee(reason)
    if stage is fitted.stage and upstream is fitted.upstream_stage:
        return saved
    report = dict(fitted.report)
    report["lines"] = [*report.get("lines", ()), f"the guarantee of the cut was taken back: {reason}"]
    if stage.cut is not None:
        report["cut"] = stage.cut.to_dict()
    if upstream is not None and upstream.cut is not None and "upstream" in report:
        report["upstream"] = {**report["upstream"], "cut": upstream.cut.to_dict()}
    return replace(saved, fitted=replace(fitted, stage=stage, upstream_stage=upstream, report=report))


def encoder_of(saved: Saved) -> Encoder | None:
    """Find the encoder of the state's texts: one that a scorer holds, else loaded once a process."""
    if saved.config.encoder is None:
        return None
    for component in saved.fitted.components:
        if component.group == "cross_encoder":  # its encoder reads fewer tokens
            continue
        held = getattr(component.scorer, "encoder", None)
        if held is not None:
            return held
    return _loaded_encoder(saved.config.encoder, saved.config.device, saved.config.dtype)


@lru_cache(maxsize=2)
def _loaded_encoder(model: str, device: str, dtype: NumberFormat) -> Encoder:
    from llm_rerank.models.semantic.encoder import SentenceEncoder

    return SentenceEncoder(model, device=device, dtype=dtype)


def _with_encoder(scorer: GrowingScorer, encoder: Encoder | None) -> GrowingScorer:
    """Give a loaded scorer that has none yet the encoder, so that the weights are in memory once."""
    if encoder is None or getattr(scorer, "encoder", encoder) is not None:
        return scorer
    given = copy(scorer)
    given.encoder = encoder  # type: ignore[attr-defined]  # asked for above
    return given


def _rendered(saved: Saved, codes: IntArray, encoder: Encoder | None) -> list[str]:
    """Texts of these items with the reviews of now, as a fit renders them."""
    items, events = saved.fitted.items, saved.events
    place = np.full(len(items), UNKNOWN, dtype=np.int64)
    place[codes] = np.arange(len(codes))
    of_codes = np.flatnonzero((events.items >= 0) & (place[events.items] >= 0))
    shown = events.take(of_codes)
    shown = replace(shown, items=place[shown.items], n_items=len(codes))
    part = Items(items.ids[codes], items.frame.iloc[codes].reset_index(drop=True), items.texts[codes])
    count_tokens = getattr(encoder, "count_tokens", None)
    rendered = saved.renderer.render_items(part, shown, None, max_tokens=ITEM_TOKENS, count_tokens=count_tokens)
    return list(rendered.texts)


def _check_all_can_grow(saved: Saved, grown: tuple[str, ...]) -> None:
    stiff = [component.name for component in saved.fitted.components if component.name not in grown]
    if stiff:
        raise DataError(f"component {stiff[0]!r} cannot take new items (it has no 'grown'); fit again on all items")


def _merged(
    old: Items, table: Any, columns: Mapping[str, str] | None, report: DataReport
) -> tuple[pd.DataFrame, Mapping[str, FloatArray], IntArray, IntArray]:
    """Catalogue after the table, and codes of known items that differ: in anything, and in the title or a vector."""
    given = to_pandas(table, report=report)
    given = require_columns(as_items(given, report, applicable(columns, given)), "items", ("item_id",))
    untitled = given.assign(title="") if "title" not in given else given
    valid = validate_items(untitled.assign(**{_ROW: np.arange(len(given))}), report=report)
    by_id = codes_by_id(old.ids)
    codes = np.array([code_of(value, by_id) for value in valid.ids], dtype=np.int64)
    source = given.iloc[valid.frame[_ROW]].reset_index(drop=True)
    n_titles = source["title"].notna().to_numpy() if "title" in source else np.zeros(len(codes), dtype=np.bool_)
    unnamed = np.flatnonzero((codes == UNKNOWN) & ~n_titles)
    if len(unnamed):
        raise DataError(f"item {valid.ids[unnamed[0]]!r} is new and has no title; give at least item_id and title")
    old_rows, new_rows = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)
    places = codes.copy()
    places[new_rows] = np.arange(len(old), len(old) + len(new_rows))
    came = {
        name: np.array([not is_missing(cell) and len(cell) > 0 for cell in source[name]], dtype=np.bool_)
        for name in valid.vectors
    }
    vectors, other_vector = merged_vectors(old.vectors, valid.vectors, came, places, len(old) + len(new_rows))
    merged: dict[Any, pd.Series] = {}
    changed = other_vector[: len(old)]
    retitled = np.zeros(len(old), dtype=np.bool_)
    passed = [column for column in valid.frame.columns if column not in old.frame.columns and column != _ROW]
    for column in [*old.frame.columns, *passed]:
        values = old.frame[column].tolist() if column in old.frame else [None] * len(old)
        arrived = valid.frame[column].tolist() if column in valid.frame else [None] * len(codes)
        differs = np.zeros(len(old), dtype=np.bool_)
        if column in source and column != "item_id":
            for row in old_rows[source[column].notna().to_numpy()[old_rows]]:
                differs[codes[row]] = not _same(values[codes[row]], arrived[row])
                values[codes[row]] = arrived[row]
        changed = changed | differs
        retitled = differs if column == "title" else retitled
        values += [arrived[row] for row in new_rows]
        merged[column] = _column(values, old.frame[column].dtype if column in old.frame else None)
    beside_text = retitled | other_vector[: len(old)]
    return pd.DataFrame(merged), vectors, np.flatnonzero(changed), np.flatnonzero(beside_text)


def _column(values: list[Any], kind: Any) -> pd.Series:
    """Make a column of the kind that it had, where its values still are of that kind."""
    column = pd.Series(object_array(values), dtype=object)
    if pd.api.types.infer_dtype(column, skipna=True) == "string":
        return column
    try:
        return plain_column(column) if kind is None or kind.kind == "O" else column.astype(kind)
    except (TypeError, ValueError):
        return plain_column(column)


def _same(here: Any, there: Any) -> bool:
    missing = [is_missing(value) for value in (here, there)]
    return bool(here == there) if not any(missing) else all(missing)
