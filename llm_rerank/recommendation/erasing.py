"""Erasing what lies around: what the report of a fit says of a user, and caches that hold vectors of their words."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_rerank.recommendation.components import Component
from llm_rerank.types import StorageError

SOMEONE = "(a forgotten user)"
SHORTEST_WORD = 3
CHECKPOINT = "fine-tuning"
"""Folder inside the cache folder where a fit keeps the checkpoint of its fine-tuning."""


def without_mentions(report: Any, user_ids: Sequence[Any]) -> Any:
    """Return a fit's report in which no text names these users; its keys stay, for they name no user.

    A text id is taken out wherever it stands as a word, a number only where it is quoted as one: 7 is not only a user,
    and neither are "a" and "cut", which an id of one or two signs, or one that is a key of the report, may be.
    """
    patterns, keys = [], set(_keys(report))
    for value in user_ids:
        text = re.escape(str(value))
        patterns += [f"'{text}'", f'"{text}"']
        if isinstance(value, str) and not value.isdigit() and len(value) >= SHORTEST_WORD and value not in keys:
            patterns.append(rf"(?<!\w){text}(?!\w)")
    if not patterns:
        return report
    mention = re.compile("|".join(patterns))
    return _mapped(report, lambda text: mention.sub(SOMEONE, text))


def erase_caches(components: Sequence[Component], cache_folder: str | Path | None) -> list[str]:
    """Erase all vectors and states of texts: in the encoders that the scorers hold, and in the cache folder.

    Wholly, for they are filed under hashes of texts: a fit has read an item's text as of its hold-out as well, and how
    that read is not known any more. The next fit computes them again. Returns what was erased, in words.
    Raises StorageError where a file cannot be removed.
    """
    from llm_rerank.models.cross_encoder.discarding import remove_states
    from llm_rerank.models.semantic.cache import CachedEncoder, remove_vectors

    erased = []
    held = [encoder for encoder in map(_held_encoder, components) if isinstance(encoder, CachedEncoder)]
    for encoder in held:
        encoder.clear()
        erased = ["vectors of texts in memory"]
    if cache_folder is None:
        return erased
    checkpoint = Path(cache_folder) / CHECKPOINT
    try:
        n_files = remove_vectors(cache_folder) + remove_states(cache_folder)
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
            n_files += 1
    except OSError as error:
        raise StorageError(
            f"{cache_folder} cannot be emptied ({error}); remove it yourself, it is only a cache"
        ) from error
    return [*erased, f"the cache folder {cache_folder}"] if n_files else erased


def _held_encoder(component: Component) -> Any:
    """Find the encoder that a scorer has loaded; asking the cross-encoder would load one."""
    scorer = component.scorer
    return scorer.__dict__.get("_encoder") if component.group == "cross_encoder" else getattr(scorer, "encoder", None)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return value


def _keys(value: Any) -> Iterator[Any]:
    """Keys of a mapping and of those in it."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _keys(part)
