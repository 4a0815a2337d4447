"""Downloads from a server of this test's own, on this machine."""

from __future__ import annotations

import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llm_rerank.data.downloads import download
from llm_rerank.data.readers import read_table
from llm_rerank.types import DataError

CONTENT = gzip.compress(b"user_id,item_id,timestamp\nu,a,1\n", mtime=0)
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self):
        self.server.requests.append(self.path)
        body = {"/set.csv.gz": CONTENT, "/damaged.csv.gz": CONTENT[:-5]}.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server, file):
    return f"http://127.0.0.1:{server.server_port}/{file}"


def test_a_file_is_fetched_once_and_read(server, tmp_path):
    path = download(address(server, "set.csv.gz"), CHECKSUM, tmp_path)
    assert path == tmp_path / "set.csv.gz" and path.read_bytes() == CONTENT
    assert read_table(path)["item_id"].tolist() == ["a"]
    assert download(address(server, "set.csv.gz"), CHECKSUM.upper(), tmp_path) == path
    assert server.requests == ["/set.csv.gz"]


def test_a_damaged_copy_on_disk_is_fetched_again(server, tmp_path):
    (tmp_path / "set.csv.gz").write_bytes(b"half a file")
    assert download(address(server, "set.csv.gz"), CHECKSUM, tmp_path).read_bytes() == CONTENT


def test_a_damaged_download_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"damaged\.csv\.gz is not the file expected: its SHA-256 differs.*not kept"):
        download(address(server, "damaged.csv.gz"), CHECKSUM, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_good_copy_survives_a_server_that_now_gives_another_file(server, tmp_path):
    path = download(address(server, "set.csv.gz"), CHECKSUM, tmp_path)
    with pytest.raises(DataError, match="not the file expected"):
        download(address(server, "set.csv.gz"), "0" * 64, tmp_path)
    assert path.read_bytes() == CONTENT


def test_what_cannot_be_fetched_is_named(server, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be fetched .*404.*check the address and the network"):
        download(address(server, "nowhere.csv"), CHECKSUM, tmp_path)
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=f"http://127.0.0.1:{port}/set.csv.gz cannot be fetched"):
        download(f"http://127.0.0.1:{port}/set.csv.gz", CHECKSUM, tmp_path, timeout_s=5)


@pytest.mark.parametrize(
    ("url", "sha256", "message"),
    [
        ("http://127.0.0.1/x.csv", "abc", "sha256 is 'abc'; it must be 64 hexadecimal digits"),
        ("file:///etc/hostname", CHECKSUM, "address 'file:///etc/hostname' is not http or https"),
        ("http://127.0.0.1/", CHECKSUM, "names no file"),
    ],
)
def test_bad_arguments(tmp_path, url, sha256, message):
    with pytest.raises(DataError, match=message):
        download(url, sha256, tmp_path)
