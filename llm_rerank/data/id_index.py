"""Finding one id among many at once: a dictionary from each id to its code, made once for an array of ids.

Where an array grows at its end, as it does when a user or an item comes, its dictionary is copied and lengthened.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from operator import is_
from typing import Any
from weakref import ref

import numpy as np

from llm_rerank.data.values import plain_id
from llm_rerank.types import UNKNOWN, ObjectArray

_MOST_KEPT = 8  # users and items of some states: those in use, and one that is just replacing them

_kept: OrderedDict[int, tuple[ref[ObjectArray], Mapping[Any, int]]] = OrderedDict()
_lock = threading.Lock()


def codes_by_id(ids: ObjectArray) -> Mapping[Any, int]:
    """Map each id to its place: the same dictionary for the same array, which must not be written to.

    ids: object, shape (n,), distinct and hashable.
    """
    with _lock:
        for key in [key for key, (array, _) in _kept.items() if array() is None]:
            del _kept[key]
        found = _kept.get(id(ids))
        if found is not None and found[0]() is ids:
            _kept.move_to_end(id(ids))
            return found[1]
        codes = _made(ids)
        _kept[id(ids)] = (ref(ids), codes)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
        return codes


def code_of(value: Any, codes: Mapping[Any, int]) -> int:
    """Return the id's code, -1 where it is unknown; True and False are no ids.

    "7" finds the number 7 where there is no text "7", and 7 finds "7" where there is no number 7: a web address or a
    CSV file cannot tell them apart. A UUID finds the text that it is written as.
    """
    value = plain_id(value)
    if isinstance(value, bool | np.bool_):
        return UNKNOWN
    code = codes.get(value)
    return codes.get(spellings(value)[-1], UNKNOWN) if code is None else code


def known_id(value: Any, codes: Mapping[Any, int]) -> Any:
    """Return the id as the shop has it, in the other spelling where only that is known (``code_of``)."""
    value = plain_id(value)
    return value if value in codes or code_of(value, codes) == UNKNOWN else spellings(value)[-1]


def spellings(value: Any) -> list[Any]:
    """Give an id and, where it has one, its other spelling: the number that a text spells, the digits of a number."""
    if isinstance(value, str):
        return [value, int(value)] if _is_whole(value) else [value]
    return [value, str(value)] if isinstance(value, int | np.integer) else [value]


def _is_whole(text: str) -> bool:
    """Tell whether a text is how a whole number is written: "7" and "-7", not "07" or "7.0"."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 20 and str(int(text)) == text


def _made(ids: ObjectArray) -> Mapping[Any, int]:
    for array, codes in reversed(_kept.values()):
        before = array()
        if before is not None and 0 < len(before) <= len(ids) and _starts_with(ids, before):
            return {**codes, **dict(zip(ids[len(before) :].tolist(), range(len(before), len(ids)), strict=True))}
    return dict(zip(ids.tolist(), range(len(ids)), strict=True))


def _starts_with(ids: ObjectArray, before: ObjectArray) -> bool:
    """Compare objects by identity, which is what an array that was lengthened shares."""
    if ids[0] is not before[0] or ids[len(before) - 1] is not before[-1]:
        return False
    return all(map(is_, ids[: len(before)].tolist(), before.tolist()))
