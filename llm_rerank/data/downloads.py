"""Downloads that are what they should be: a file by its address and its SHA-256, through pooch.

Never called by anything else here: no code of this library reaches for the network unasked.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from llm_rerank.types import DataError


def download(url: str, sha256: str, folder: str | Path, *, timeout_s: float = 60) -> Path:
    """Fetch a file into a folder unless it is there already; returns its path.

    sha256: 64 hexadecimal digits; the file is kept only if it has this checksum, and is moved into place whole.
    Raises DataError where the address cannot be reached or the file is not the one expected.
    """
    import pooch

    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(f"sha256 is {sha256!r}; it must be 64 hexadecimal digits")
    if not url.startswith(("http://", "https://")):
        raise DataError(f"address {url!r} is not http or https; give a full address")
    file = urlsplit(url).path.rpartition("/")[2]
    if not file:
        raise DataError(f"address {url!r} names no file; give the address of one file")
    pooch.get_logger().setLevel(logging.WARNING)  # pooch tells of every download; our own caller does
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout_s)
    try:
        path = pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=file, path=folder, downloader=fetch)
    except ValueError as error:  # pooch's word for a wrong checksum
        raise DataError(
            f"{url} is not the file expected: its SHA-256 differs from {sha256}; it may be damaged or newer, and was "
            "not kept; try again, or give the new file's checksum once you trust it"
        ) from error
    except OSError as error:  # requests' errors are OSErrors too
        raise DataError(f"{url} cannot be fetched ({error}); check the address and the network") from error
    return Path(path)
