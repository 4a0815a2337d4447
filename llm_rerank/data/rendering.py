"""Items as text through the templates of ``prompts/``, within a budget of tokens.

Templates run in a sandbox, and what items, reviews and users say is data in them, never a template. Of reviews
over their budget the oldest goes first, the newest never. Counting tokens is the encoder's business and comes as a
function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_rerank.data.splits import Timeline
from llm_rerank.data.values import mapping_of_text
from llm_rerank.types import (
    BoolArray,
    DataError,
    IntArray,
    Interactions,
    Items,
    Ragged,
    StorageError,
)

TEMPLATES = ("item", "review_digest")
CountTokens = Callable[[Sequence[str]], IntArray]

MOST_REVIEWS = 8
"""Newest reviews of an item that a digest considers."""

REVIEW_CHARACTERS = 300
"""A longer review is cut here, so that one talkative customer does not fill the digest."""

_ITEM_COLUMNS = ("title", "brand", "categories", "price", "specs", "description")
_NOT_TEXT = (*_ITEM_COLUMNS, "item_id", "image")
_MOST_CHARACTERS_PER_TOKEN = 8
_CUT_ROUNDS = 8
_CUT_SLACK = 0.95
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_EMPTY_ITEM: dict[str, Any] = {
    "title": "", "brand": "", "categories": "", "price": None, "specs": [], "extra": [], "description": "",
}  # fmt: skip


class Renderer:
    """Renders texts with two templates: item.jinja, review_digest.jinja.

    folder: where they lie; None: the ones that come with the library. Every template is compiled and tried once here.

    Raises StorageError where a template is missing, DataError where one is broken; both name the file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = packaged_templates() if folder is None else Path(folder)
        self._sources = {name: _read_template(folder / f"{name}.jinja") for name in TEMPLATES}
        self._templates = {name: _compiled(source, folder / f"{name}.jinja") for name, source in self._sources.items()}
        full = _EMPTY_ITEM | {"title": "a", "price": 1.0, "specs": ["a: b"], "extra": ["a: b"]}
        trials: Mapping[str, Sequence[dict[str, Any]]] = {
            "item": [{"item": _EMPTY_ITEM, "digest": ""}, {"item": full, "digest": "a"}],
            "review_digest": [{"reviews": ["a", "b"]}],
        }
        for name, variables in trials.items():
            _try(self._templates[name], variables, folder / f"{name}.jinja")

    def save(self, folder: Path) -> None:
        """Copy the templates into a folder, which is made where absent; ``Renderer(folder)`` reads them again."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in self._sources.items():
            (folder / f"{name}.jinja").write_text(source, encoding="utf-8")

    def render_items(
        self,
        items: Items,
        events: Interactions | None = None,
        as_of: int | None = None,
        *,
        max_tokens: int = 128,
        count_tokens: CountTokens | None = None,
    ) -> Items:
        """Return the items with texts of at most ``max_tokens``, cut from the end.

        events: their reviews strictly before ``as_of`` (None: all of them) are digested, newest first; the digest takes
        what the rest of the item leaves of the budget, dropping the oldest reviews.
        count_tokens: tokens of each text, int64; None: ``approximate_tokens``.
        """
        count = approximate_tokens if count_tokens is None else count_tokens
        views = _item_views(items)
        render = self._templates["item"].render
        texts = [render(item=view, digest="") for view in views]
        if events is not None:
            rows = _newest_reviews(events, len(items), as_of)
            reviewed = np.flatnonzero(rows.lengths)
            rows = rows.take(reviewed)
            reviews = [" ".join(text[:REVIEW_CHARACTERS].split()) for text in events.reviews[rows.values]]
            budgets = max_tokens - count([texts[item] for item in reviewed])
            kept = _newest_within(rows, count(reviews), budgets)
            digest = self._templates["review_digest"].render
            for row in np.flatnonzero(budgets > 0):
                positions = range(rows.offsets[row + 1] - 1, rows.offsets[row] - 1, -1)
                newest_first = [reviews[position] for position in positions if kept[position]]
                item = reviewed[row]
                texts[item] = render(item=views[item], digest=digest(reviews=newest_first))
        return items.with_texts(cut_to_budget(texts, max_tokens, count_tokens))


def read_template(name: str, trial: Mapping[str, Any]) -> Template:
    """Compile one of the library's own templates and try it once. name: without ".jinja".

    Raises StorageError where it is missing, DataError where it is broken or cannot render the trial's variables.
    """
    path = packaged_templates() / f"{name}.jinja"
    template = _compiled(_read_template(path), path)
    _try(template, [dict(trial)], path)
    return template


def packaged_templates() -> Path:
    """Folder of the library's own templates: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "_prompts"
    return in_wheel if in_wheel.is_dir() else package.parent / "prompts"


def approximate_tokens(texts: Sequence[str]) -> IntArray:
    """Count words, punctuation marks and single CJK characters: int64, shape (n_texts,).

    For use without a tokenizer; a word piece tokenizer counts about 1.3 times as many in English.
    """
    return np.array([len(_TOKEN.findall(text)) for text in texts], dtype=np.int64)


def cut_to_budget(texts: Sequence[str], max_tokens: int, count_tokens: CountTokens | None = None) -> list[str]:
    """Cut each text from its end, at the end of a word, to at most ``max_tokens``; shorter texts stay as they are.

    The length is found by interpolation for all texts at once, to within 5 % of the budget (or as near as a few counts
    come), because counting is the dear part. A text of which nothing fits becomes "".

    Raises DataError where max_tokens is below 1.
    """
    if max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}; a text needs a budget of at least 1 token")
    if count_tokens is None:  # one pass finds where the last token within the budget ends
        edges = [list(islice(_TOKEN.finditer(text), max_tokens - 1, max_tokens + 1)) for text in texts]
        return [text[: edge[0].end()] if len(edge) == 2 else text for text, edge in zip(texts, edges, strict=True)]
    # A first cut by characters spares the tokenizer texts of a hundred pages; no language needs as many a token.
    most = max_tokens * _MOST_CHARACTERS_PER_TOKEN
    cut = [text if len(text) <= most else text[: _word_end(text, most, 0, len(text))] for text in texts]
    counts = np.asarray(count_tokens(cut), dtype=np.int64)
    over = np.flatnonzero(counts > max_tokens)
    fits, fits_tokens = np.zeros(len(cut), dtype=np.int64), np.zeros(len(cut), dtype=np.int64)
    too_long, too_long_tokens = np.array([len(text) for text in cut], dtype=np.int64), counts
    for attempt in range(_CUT_ROUNDS):
        near = (fits_tokens[over] >= _CUT_SLACK * max_tokens) | (too_long[over] - fits[over] <= 1)
        active = over[~near]
        if not len(active):
            break
        room = too_long[active] - fits[active]
        share = (max_tokens - fits_tokens[active]) / (too_long_tokens[active] - fits_tokens[active])
        # Interpolation can creep where a text changes its kind on the way; halving cannot.
        steps = room // 2 if attempt % 3 == 2 else (room * share).astype(np.int64)
        guesses = fits[active] + np.clip(steps, 1, room - 1)
        spans = zip(active, guesses, fits[active], too_long[active], strict=True)
        ends = np.array([_word_end(cut[i], *span) for i, *span in spans], dtype=np.int64)
        tokens = np.asarray(count_tokens([cut[i][:end] for i, end in zip(active, ends, strict=True)]), dtype=np.int64)
        good = tokens <= max_tokens
        fits[active[good]], fits_tokens[active[good]] = ends[good], tokens[good]
        too_long[active[~good]], too_long_tokens[active[~good]] = ends[~good], tokens[~good]
    for i in over:
        cut[i] = cut[i][: fits[i]].rstrip()
    return cut


def _word_end(text: str, end: int, least: int, most: int) -> int:
    """Find a word's end in (least, most): the last up to ``end``, else the next, else (Chinese) ``end`` itself."""
    if text[end].isspace():
        return end
    blank = text.rfind(" ", least + 1, end)
    if blank < 0:
        blank = text.find(" ", end, most)
    return end if blank < 0 else blank


def _newest_within(rows: Ragged, tokens: IntArray, budgets: npt.NDArray[Any]) -> BoolArray:
    """Which values (oldest first in each row) the budget of the row keeps, counted from the newest: bool, (n_values,).

    The newest of a row is always kept.
    """
    through = np.concatenate([[0], np.cumsum(tokens)])
    row_of_value = rows.row_of_value
    from_here = through[rows.offsets[1:]][row_of_value] - through[:-1]
    kept = from_here <= budgets[row_of_value]
    kept[rows.offsets[1:][rows.lengths > 0] - 1] = True
    return kept


def _newest_reviews(events: Interactions, n_items: int, as_of: int | None) -> Ragged:
    """Positions of the newest reviews of each item strictly before ``as_of``, oldest first."""
    written = np.flatnonzero(events.reviews.astype(bool) & (events.items >= 0))
    moment = np.iinfo(np.int64).max if as_of is None else as_of
    every_item = np.arange(n_items, dtype=np.int64)
    rows = Timeline.of(events.items[written], events.times[written]).before(
        every_item, np.full(n_items, moment), newest=MOST_REVIEWS
    )
    return Ragged(written[rows.values], rows.offsets)


def _item_views(items: Items) -> list[dict[str, Any]]:
    """Give what the item template sees of each item."""
    frame = items.frame
    views: list[dict[str, Any]] = [
        {
            "title": _part(title),
            "brand": _part(brand),
            "categories": _part(categories),
            "price": float(price) if price > 0 else None,
            "specs": _specs(specs),
            "extra": [],
            "description": _part(description),
        }
        for title, brand, categories, price, specs, description in zip(
            *(frame[name].tolist() for name in _ITEM_COLUMNS), strict=True
        )
    ]
    for name in frame.columns:
        if name not in _NOT_TEXT:
            for view, value in zip(views, frame[name].tolist(), strict=True):
                if isinstance(value, str) and value.strip():
                    view["extra"].append(f"{name}: {_part(value)}")
    return views


def _specs(text: str) -> list[str]:
    """Read a JSON mapping as "name: value" parts, lists joined by commas; any other text is one part."""
    mapping = mapping_of_text(text)
    if mapping is None:
        return [part] if (part := _part(text)) else []
    return [
        f"{name}: {_part(', '.join(map(str, value)) if isinstance(value, list) else str(value))}"
        for name, value in mapping.items()
    ]


def _part(text: str) -> str:
    """Collapse white space and drop a final full stop: the template joins the parts by one."""
    return " ".join(text.split()).rstrip(" .")


def _read_template(path: Path) -> str:
    """Read a template; StorageError names a missing file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"{path} is missing; a folder of templates needs {', '.join(TEMPLATES)} (.jinja)") from None


def _compiled(source: str, path: Path) -> Template:
    """Compile a template in a sandbox without escaping: texts are for models, not for browsers."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", "?")
        raise DataError(f"{path}, line {line}: {error}; correct the template") from error


def _try(template: Template, trials: Sequence[dict[str, Any]], path: Path) -> None:
    """Render trial values, so that a wrong name or filter shows when the template is loaded."""
    for variables in trials:
        try:
            template.render(**variables)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(f"{path} cannot be rendered ({error}); it may use {', '.join(variables)}") from error
