"""The encoding of a file that does not say it: UTF-8 where all but a few bytes are, else a guess that is said."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from llm_rerank.types import DataError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

WESTERN = ("cp1252", "cp1250", "cp1254")
"""Latin letters with accents; the first where nothing speaks for another."""

OTHERS = ("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")

MOST_UNREADABLE = 0.01
"""Share of bytes that are no UTF-8, among all characters above 127, up to which a file is damaged UTF-8."""

SAMPLE_BYTES = 1 << 16
"""Of the lines that hold other bytes than ASCII: what a guess reads."""

_ESCAPED = re.compile("[\udc80-\udcff]")
_LINE = re.compile(rb"[^\n]*[\x80-\xff][^\n]*")
_WORD = re.compile(rb"[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]+|[A-Za-z]+[\x80-\xff]")


def decode(raw: bytes, path: Path, encoding: str | None = None) -> tuple[str, str]:
    """Decode bytes to text.

    Returns the text without byte order mark, lines ending in one newline, and how it was read, in words.
    Raises DataError where the bytes are not of the encoding given.
    """
    found = encoding or next((name for mark, name in MARKS if raw.startswith(mark)), None)
    said = found or "utf-8"
    try:
        text = raw.decode(said)
    except (UnicodeDecodeError, LookupError) as error:
        if found is not None:
            raise DataError(
                f"{path} cannot be read as {found} ({error}); give the file's true encoding, such as encoding='cp1252'"
            ) from error
        text, n_unreadable = _damaged_utf8(raw)
        if n_unreadable <= MOST_UNREADABLE * _n_above_127(text):
            said = f"utf-8 with {n_unreadable:,} unreadable bytes (shown as \ufffd)"
        else:
            guessed = guess_encoding(raw)
            text, said = raw.decode(guessed), f"{guessed} (a guess: where letters look wrong, name the encoding)"
    text = text.removeprefix("\ufeff")  # an encoding that was named need not take the mark away
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""), said


def _damaged_utf8(raw: bytes) -> tuple[str, int]:
    """Decode as UTF-8, with a mark for each byte that is none; also how many these are."""
    return _ESCAPED.subn("\ufffd", raw.decode("utf-8", "surrogateescape"))


def _n_above_127(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def guess_encoding(raw: bytes) -> str:
    """Guess the encoding of bytes that are no UTF-8; it decodes all of them.

    In a language of Latin letters most letters of a word are ASCII, and a byte above 127 is one letter among them; in
    Chinese, Japanese, Korean, Greek or Russian such bytes are most of the word.
    """
    from charset_normalizer import from_bytes

    sample = b"".join(_lines_up_to(raw, SAMPLE_BYTES))
    words = b"".join(set(_WORD.findall(sample)))  # each once: a "süß" in every row must not decide
    is_western = 2 * sum(byte >= 0x80 for byte in words) < len(words) or not words
    names = WESTERN if is_western else OTHERS
    matches = from_bytes(sample, cp_isolation=list(names))
    ranked = sorted(
        (match.chaos, -match.coherence, names.index(name), name)
        for match in matches
        for name in match.could_be_from_charset
        if name in names
    )
    for name in (*(name for *_, name in ranked), "cp1252"):
        try:
            raw.decode(name)
            return name
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _lines_up_to(raw: bytes, n_bytes: int) -> list[bytes]:
    """Lines with bytes above 127, from the first on, until they are so many bytes."""
    lines: list[bytes] = []
    for match in _LINE.finditer(raw):
        lines.append(match.group() + b"\n")
        n_bytes -= len(lines[-1])
        if n_bytes <= 0:
            break
    return lines
