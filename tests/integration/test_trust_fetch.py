"""Metadata over HTTP goes by the agent's rules: proxies, TLS, redirects, headers, sizes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from fakes.brokers import TlsFiles
from fakes.downloads import FileServer, cut_after, encoded, endless, proxying, redirect, serving, status, trickle
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError

from agent.transfer.tls import Tls
from agent.update.trust_fetch import FetchLimits, MetadataFetcher

CONTENT = b'{"signed": {}}' * 100


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({"/timestamp.json": CONTENT, "/moved.json": CONTENT}) as server:
        yield server


def test_a_file(server: FileServer) -> None:
    with MetadataFetcher() as fetcher:
        assert fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT)) == CONTENT
        assert b"".join(fetcher.fetch(server.url("/timestamp.json"))) == CONTENT
    assert server.requests[0][1]["accept-encoding"] == "identity"


def test_one_byte_too_many(server: FileServer) -> None:
    with MetadataFetcher() as fetcher, pytest.raises(DownloadLengthMismatchError):
        fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT) - 1)
    server.plan = [endless]
    with MetadataFetcher() as fetcher, pytest.raises(DownloadLengthMismatchError):
        fetcher.download_bytes(server.url("/timestamp.json"), 100_000)


def test_a_slow_one_is_given_up_in_time(server: FileServer) -> None:
    server.plan = [trickle]
    with MetadataFetcher(limits=FetchLimits(stall_s=0.3, total_s=10)) as fetcher, pytest.raises(SlowRetrievalError):
        fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT))


@pytest.mark.parametrize("behaviour", [cut_after(10), encoded])
def test_half_a_file_or_another_form_of_it(server: FileServer, behaviour: object) -> None:
    server.plan = [behaviour]  # type: ignore[list-item]
    with MetadataFetcher() as fetcher, pytest.raises(DownloadError):
        fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT))


def test_the_status_is_told(server: FileServer) -> None:
    server.plan = [status(404)]
    with MetadataFetcher() as fetcher, pytest.raises(DownloadHTTPError) as caught:
        fetcher.download_bytes(server.url("/timestamp.json"), 1000)
    assert caught.value.status_code == 404


def test_tokens_do_not_follow_to_another_place(server: FileServer) -> None:
    with serving({"/moved.json": CONTENT}) as other, MetadataFetcher(headers={"Authorization": "secret"}) as fetcher:
        server.plan = [redirect(other.url("/moved.json"))]
        assert fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT)) == CONTENT
        assert server.requests[0][1]["authorization"] == "secret"
        assert "authorization" not in other.requests[0][1]


def test_redirects_come_to_an_end(server: FileServer) -> None:
    server.plan = [redirect("/timestamp.json")] * 10
    with MetadataFetcher() as fetcher, pytest.raises(DownloadError, match="more than 5 times"):
        fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT))


def test_a_redirect_to_a_file_of_this_machine(server: FileServer) -> None:
    server.plan = [redirect("file:///etc/passwd")]
    with MetadataFetcher() as fetcher, pytest.raises(DownloadError, match="no web address"):
        fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT))


def test_by_way_of_the_proxy(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxying() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with MetadataFetcher() as fetcher:
            fetcher.download_bytes(server.url("/timestamp.json"), len(CONTENT))
        assert proxy.seen == [f"GET {server.url('/timestamp.json')}"]


def test_only_the_named_authority_counts(tls_files: TlsFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_files.server_cert, tls_files.server_key)
    with serving({"/timestamp.json": CONTENT}, context) as server:
        url = server.url("/timestamp.json", "localhost")
        with MetadataFetcher(Tls(ssl.create_default_context(cafile=tls_files.ca))) as fetcher:
            assert fetcher.download_bytes(url, len(CONTENT)) == CONTENT
        with MetadataFetcher() as fetcher, pytest.raises(DownloadError, match="no trustworthy TLS"):
            fetcher.download_bytes(url, len(CONTENT))
