"""What a chat model's answer says of an order, however it was written down; or that it says none."""

from __future__ import annotations

import re

import numpy as np

from llm_rerank.types import IntArray

LEAST_NAMED = 0.5
"""Share of the candidates that an answer must name: a refusal names some in passing."""

_THOUGHT = re.compile(r"^.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_TOKEN = re.compile(r"->|\w+(?:\.[0-9]+)*|[^\w\s]")
_BETWEEN = frozenset([",", ";", ">", "→", "->", "[", "]", '"', "'", "then", "and"])
"""What may stand between two numbers of one order."""

# bounded, so that a long answer is read in one go
_COUNTED = re.compile(
    r"^[^\w\n]{0,8}([0-9]{1,9})[ \t]?[.):][ \t]{0,8}"
    r"(?:(?:candidate|item|product|number|no\.?) )?[^\w\n]{0,8}([0-9]{1,9})\b",
    re.MULTILINE | re.IGNORECASE,
)
_LINE_STARTS = re.compile(r"^[^\w\n]{0,8}([0-9]{1,9})[ \t]?[.):]\s", re.MULTILINE)
_MARKED = re.compile(r"\[([0-9]{1,9})\]")


def read_order(answer: str, n: int) -> IntArray | None:
    """Read places of the n candidates, best first, from an answer that numbers them from 1.

    Read is, of these, what names the most: numbers one after another (``[2, 1, 3]``, ``2 > 1 > 3``, one a line; the
    last of several alike), numbers in brackets among words, lines that begin with a number, and a counted
    list (``1. [2]``, ``2. [1]``), in which the first number of a line is its place. Lines of words counted from 1 up
    could mean either, and say nothing. What a model thinks aloud before ``</think>`` is not read. Numbers that come
    again count once, invented ones not at all; candidates that are not named come last, in the order in which they
    were given.

    Returns int64, shape (n,), a permutation; None where fewer than ``LEAST_NAMED`` are named, or where the numbers
    seem to count from 0.
    """
    answer = _THOUGHT.sub("", answer).strip()
    counted = _COUNTED.findall(answer)
    if len(counted) > 1 and _counts([int(count) for count, _ in counted]):
        # "1. [7]": the first number counts the places; nothing else that it holds may be read as the order
        readings = [[int(number) for _, number in counted]]
    else:
        readings = _runs(answer)
        starts = [int(number) for number in _LINE_STARTS.findall(answer)]
        readings += [[int(number) for number in _MARKED.findall(answer)], [] if _counts(starts) else starts]
    # one number among words is no order
    least = 2 if re.search(r"[^\W\d]", answer) else 1
    readings = [numbers for numbers in readings if len(numbers) >= least]
    best: list[int] = []
    for numbers in readings:
        named = [number for number in dict.fromkeys(numbers) if 1 <= number <= n]
        if len(named) >= len(best) and not (0 in numbers and n not in numbers):
            best = named
    if len(best) < LEAST_NAMED * n or not best:
        return None
    places = np.array(best, dtype=np.int64) - 1
    return np.concatenate([places, np.setdiff1d(np.arange(n, dtype=np.int64), places)])


def _counts(numbers: list[int]) -> bool:
    return numbers == list(range(1, len(numbers) + 1))


def _runs(answer: str) -> list[list[int]]:
    """Numbers that stand one after another, with nothing but ``_BETWEEN`` them."""
    runs: list[list[int]] = [[]]
    for token in _TOKEN.findall(answer):
        if token.isascii() and token.isdigit() and len(token) < 10:
            runs[-1].append(int(token))
        elif token.lower() not in _BETWEEN and runs[-1]:
            runs.append([])
    return runs
