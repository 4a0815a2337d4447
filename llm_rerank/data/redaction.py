"""Personal data taken out of texts before they leave the machine; what a shop sells is left as it is.

Found by their form: e-mail addresses, links with a login or a query, IBANs, payment cards, telephone numbers, IP
addresses; and by comparison: terms that the caller gives (names, user ids).

What it does not do. A name, a street or a date of birth in free text has no form and is found only where it is given as
a term. Order and customer numbers look like product codes and stay. A telephone number is told from a product code by
its form: a "+", an area code in brackets or set off, a word such as "call" or "phone:" before it, or a bare run of
digits that is a mobile number's and no product code's; "4155552671" with nothing before it stays, and a UPC without its
check digit (11 digits, 0 first) is taken for one. A path of a link stays, a host name too. It is a net with meshes, not
anonymisation: what remains may still say who somebody is.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from llm_rerank.types import DataError

EMAIL, LINK, TERM, IBAN, CARD, PHONE, IP = "e-mail", "link", "redacted", "iban", "card", "phone", "ip"
KINDS = (EMAIL, LINK, TERM, IBAN, CARD, PHONE, IP)

Found = Callable[[re.Match[str]], "tuple[int, int] | None"]
"""Which part of the text a match says is personal; None: none of it."""

_LABEL = re.compile(rf"(\[(?:{'|'.join(KINDS)})\])")

_LINK = re.compile(r"(?<![\w+.-])(?:[a-z][a-z0-9+.-]{1,20}://|www\.)[^\s<>\"'\[\]]+", re.IGNORECASE)
# each part starts where the character before is none of its own, so that no run is read twice
_LOCAL = r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]+"
_TOP = r"(?:xn--[\w-]+|[^\W\d_]{2,})"
_EMAIL = re.compile(
    rf"(?:{_LOCAL}|\"[^\"\n]{{1,64}}\")@(?:[\w-]+\.)+{_TOP}"
    rf"|{_LOCAL}\s?[\[(]\s?at\s?[\])]\s?[\w-]+(?:(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)[\w-]+)+",
    re.IGNORECASE,
)
_IBAN = re.compile(r"\b[a-z]{2}[0-9]{2}(?:[ -]?[a-z0-9]{4}){2,7}(?:[ -]?[a-z0-9]{1,3})?\b", re.IGNORECASE | re.ASCII)
_CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){13,}(?![\w-])(?!\.\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)

_CODE_BEFORE = re.compile(
    r"(?:\b(?:ean|gtin|upc|isbn|asin|sku|mpn|oem|barcode|art(?:icle|ikel)?|item|model|part|ref(?:erence)?|serial)"
    r"(?:[ -]?(?:no|nr|number|nummer|code|1[0234]|8))?[.:#\s-]{0,3})$",
    re.IGNORECASE,
)
_VERSION_BEFORE = re.compile(r"(?:\b(?:v|ver|version|firmware|fw|rev|revision|build|bios|release)[.:\s]{0,2})$", re.I)

_INTERNATIONAL = re.compile(r"(?<![\w+])(?:\+|(?<!\d[ .,-])00(?=[1-9]))(?:[ ./-]?\(?\d\)?){8,15}(?![\w]|[.,-]?\d)")
_NORTH_AMERICAN = re.compile(
    r"(?<![\w.-])(?<!\d )(?:1[ .-])?(?:\([2-9]\d{2}\)[ .-]?[2-9]\d{2}[ .-]\d{4}|[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4})"
    r"(?![\w-]|\.\d)"
)
_AREA_SET_OFF = re.compile(
    r"(?<!\w)(?<!\d[./,-])(?:\(0[1-9]\d{0,3}\)[ ./-]?|0[1-9]\d{0,3}[ ./-])\d{2,8}(?:([ .-])\d{2,8}(?:\1\d{2,8})*)?"
    r"(?!\w|[.,]\d|[/-]\w)"
)
_BARE = re.compile(r"(?<![\w.,/-])(?:0[1-9]\d{9}|0[67]\d{8}|1[3-9]\d{9}|00[1-9]\d{9,12})(?![\w-]|[.,/]\d)")
_AFTER_WORD = re.compile(
    r"(?:\b(?:tel|call|whats?app)(?:\s(?:me|us|him|her))?(?:\s(?:at|on|under))?[.:\s]{1,3}"
    r"|\b(?:ring|dial|text|reach)\s(?:(?:me|us|him|her)(?:\s(?:at|on|under))?|at|on)[:\s]{1,2}"
    r"|\b(?:phone|telephone|telefon|mobile|mobil|cell(?:phone)?|handy|fax|hotline|t[ée]l[ée]fono?|t[ée]l[ée]phone|m[óo]vil"
    r"|portable)\s?(?:(?:number|no\.?|nr\.?|nummer|#)\s?(?:is\b|:)?|is\b|:|at\b|under\b)\s?"
    r"|(?:电话|手机|電話|携帯)[:：\s]{0,2})"
    r"(\(?\d(?:[ ./()-]{0,2}\d){5,14})(?![\w]|[.,]\d)",
    re.IGNORECASE,
)
_YEARS = re.compile(r"(?:(?:19|20)\d{2}\D*)+")


def redact(text: str, terms: Iterable[str] = ()) -> tuple[str, Counter[str]]:
    """Put a label such as ``[e-mail]`` in the place of each personal datum; see the module for what is found.

    terms: names, user ids, … to take out wherever they stand as whole words, in any case; labelled ``[redacted]``.
    Returns the text, and how many of each kind (``KINDS``) were taken out. Redacting the result changes nothing.
    Raises DataError where ``terms`` is one text or holds a blank one.
    """
    return Redactor(terms)(text)


class Redactor:
    """``redact`` with its terms compiled once; call it with a text.

    terms: as in ``redact``, kept in ``terms``.
    """

    def __init__(self, terms: Iterable[str] = ()) -> None:
        if isinstance(terms, str):
            raise DataError(f"terms is the text {terms[:60]!r}; give a list of texts")
        self.terms: tuple[str, ...] = tuple(terms)
        if any(not isinstance(term, str) or not term.strip() for term in self.terms):
            raise DataError("terms holds a blank text or what is no text; leave it out")
        steps: list[tuple[str, re.Pattern[str], Found]] = [(LINK, _LINK, _personal_link), (EMAIL, _EMAIL, _all_of_it)]
        if self.terms:
            # before the numbers: a user id may hold one, of which a part would be left
            steps.append((TERM, _pattern_of(self.terms), _all_of_it))
        self._steps: list[tuple[str, re.Pattern[str], Found]] = [
            *steps,
            (IBAN, _IBAN, _iban),
            (CARD, _CARD, _card),
            (PHONE, _INTERNATIONAL, _international),
            (PHONE, _NORTH_AMERICAN, _no_code),
            (PHONE, _AREA_SET_OFF, _nine_to_twelve_digits),
            (PHONE, _AFTER_WORD, _after_word),
            (PHONE, _BARE, _bare),
            (IP, _IPV4, _address),
            (IP, _IPV6, _address),
        ]

    def __call__(self, text: str) -> tuple[str, Counter[str]]:
        """Redact one text; see ``redact``."""
        counts: Counter[str] = Counter()
        while True:  # to the fixed point: what stands beside a label may show its form only now. It gets shorter.
            before = text
            for kind, pattern, found in self._steps:
                # labels stay as they are, and nothing is found across one
                parts = _LABEL.split(text)
                for place in range(0, len(parts), 2):
                    parts[place], n_found = _replaced(parts[place], pattern, found, f"[{kind}]")
                    if n_found:
                        counts[kind] += n_found
                text = "".join(parts)
            if text == before:
                return text, counts


def _replaced(text: str, pattern: re.Pattern[str], found: Found, label: str) -> tuple[str, int]:
    """Put the label in the place of what ``found`` says of each match; also how often."""
    pieces, end = [], 0
    for match in pattern.finditer(text):
        span = found(match)
        if span is not None:
            pieces += [text[end : span[0]], label]
            end = span[1]
    return "".join([*pieces, text[end:]]), len(pieces) // 2


def _pattern_of(terms: Sequence[str]) -> re.Pattern[str]:
    """Any of the terms as whole words, the longest first; accents composed or not, blanks of any width."""
    forms = {form for term in terms for form in (unicodedata.normalize(way, term.strip()) for way in ("NFC", "NFD"))}
    choices = []
    for form in sorted(forms | {term.strip() for term in terms}, key=len, reverse=True):
        words = r"\s+".join(re.escape(word) for word in form.split())
        # Chinese and Japanese set no blanks between words
        before = r"(?<!\w)" if _is_spaced(form[0]) else ""
        after = r"(?!\w)" if _is_spaced(form[-1]) else ""
        choices.append(f"{before}{words}{after}")
    return re.compile("|".join(choices), re.IGNORECASE)


def _is_spaced(character: str) -> bool:
    return bool(re.match(r"\w", character)) and not "\u3040" <= character <= "\u9fff"


def _all_of_it(match: re.Match[str]) -> tuple[int, int]:
    return match.span()


def _personal_link(match: re.Match[str]) -> tuple[int, int] | None:
    """Find a link with a login, or with anything after "?" or "#": what that means cannot be told."""
    link = match.group().rstrip(".,;:!?)")
    if re.search(r"[?#]\w|//[^/?#]*@|//[^/]*:.*@", link):
        return match.start(), match.start() + len(link)
    return None


def _iban(match: re.Match[str]) -> tuple[int, int] | None:
    """Find the longest part, from the start and to the end of a word, that is 15 to 34 long and 1 modulo 97."""
    text = match.group()
    ends = [end for end in range(len(text), 14, -1) if end == len(text) or not text[end].isalnum()]
    for end in ends:
        plain = re.sub(r"[ -]", "", text[:end]).upper()
        if 15 <= len(plain) <= 34 and sum(sign.isdigit() for sign in plain) >= 10 and text[end - 1].isalnum():
            number = "".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])
            if int(number) % 97 == 1:
                return match.start(), match.start() + end
    return None


_ISSUERS = re.compile(
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|(?:6011|64[4-9]\d|65\d\d|62\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:50|5[6-9]|6\d)\d{12,17}"
)
"""Lengths and first digits that cards have: of 14 to 19 digits. Visas of 13 are gone, EANs of 13 are everywhere."""

MOST_GROUPS = 6
LEAST_GROUP = 3
"""Groups of a card's number as it may be written, and digits of one: "36 37 38 39 40 41 42" are sizes."""


def _card(match: re.Match[str]) -> tuple[int, int] | None:
    """Find the longest run of whole groups of digits that is a card's number: the groups beside it may be anything."""
    groups = [group.span() for group in re.finditer(r"\d+", match.group())]
    for n_groups in range(min(len(groups), MOST_GROUPS), 0, -1):
        for first in range(len(groups) - n_groups + 1):
            start, end = groups[first][0], groups[first + n_groups - 1][1]
            if _is_card(match.group()[start:end], match):
                return match.start() + start, match.start() + end
    return None


def _is_card(number: str, match: re.Match[str]) -> bool:
    digits = _digits(number)
    if len(digits) < len(number) and min(map(len, re.findall(r"\d+", number))) < LEAST_GROUP:
        return False
    # a GTIN has at most 14 digits: a longer number with a card's sum is one whatever stands before it
    if len(digits) <= 14 and (_follows(_CODE_BEFORE, match) or _is_gtin(digits)):
        return False
    return bool(_ISSUERS.fullmatch(digits)) and _luhn(digits) and not _are_round(number, least=4)


def _are_round(number: str, *, least: int) -> bool:
    """Whether it is so many groups that all end in 0 or 5: sizes, or the models that a part fits."""
    groups = re.findall(r"\d+", number)
    return len(groups) >= least and all(int(group) % 5 == 0 for group in groups)


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def _is_gtin(digits: str) -> bool:
    """Whether a run of 8, 12, 13 or 14 digits has the check digit of a product code."""
    if len(digits) not in (8, 12, 13, 14):
        return False
    return (3 * sum(map(int, digits[-2::-2])) + sum(map(int, digits[::-2]))) % 10 == 0


def _international(match: re.Match[str]) -> tuple[int, int] | None:
    is_run = match.group().isdigit()  # 00…: a bare run may be a product code
    return None if is_run and (_is_gtin(match.group()) or _follows(_CODE_BEFORE, match)) else match.span()


def _no_code(match: re.Match[str]) -> tuple[int, int] | None:
    return None if _follows(_CODE_BEFORE, match) else match.span()


def _nine_to_twelve_digits(match: re.Match[str]) -> tuple[int, int] | None:
    is_phone = 9 <= len(_digits(match.group())) <= 12 and not _are_round(match.group(), least=5)
    return _no_code(match) if is_phone else None


def _after_word(match: re.Match[str]) -> tuple[int, int] | None:
    return None if _YEARS.fullmatch(match.group(1)) else match.span(1)


def _bare(match: re.Match[str]) -> tuple[int, int] | None:
    return None if _is_gtin(match.group()) else _no_code(match)


def _address(match: re.Match[str]) -> tuple[int, int] | None:
    """Find an IP address, not a version and not a time of day."""
    text = match.group()
    if _follows(_VERSION_BEFORE, match) or (":" in text and (len(text) < 6 or not re.search(r"\d", text))):
        return None
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return match.span()


def _digits(text: str) -> str:
    return "".join(str(int(sign)) for sign in text if sign.isdecimal())


def _follows(pattern: re.Pattern[str], match: re.Match[str]) -> bool:
    return pattern.search(match.string[max(0, match.start() - 40) : match.start()]) is not None
