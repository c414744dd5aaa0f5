"""What updates ask of a download beside what `models pull` does: a rate, headers, a client certificate."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fakes.downloads import Watcher, proxying, redirect, serving, stall_after

from agent.errors import ModelError
from agent.transfer.download import Access, Limits, Wanted, download
from agent.transfer.faults import DownloadError, RefusedDownloadError

CONTENT = bytes(range(256)) * 800
LIMITS = Limits(connect_s=2, stall_s=0.4, stall_bytes=1000, attempts=1, initial_wait_s=0.01, max_wait_s=0.02)
WANTED = Wanted(len(CONTENT), len(CONTENT), checksum_known=True)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def limited(**changes: float) -> Limits:
    import dataclasses

    return dataclasses.replace(LIMITS, **changes)  # type: ignore[arg-type]


async def test_a_rate_is_kept_and_our_own_waiting_is_no_stall(tmp_path: Path) -> None:
    with serving({"/a": CONTENT}) as server:
        started_s = time.monotonic()
        rate = 100_000.0
        await download(
            server.url("/a"), tmp_path / "a", WANTED, Watcher(), limits=limited(max_bytes_per_s=rate, stall_s=0.2)
        )
        seconds = time.monotonic() - started_s
    assert (tmp_path / "a").read_bytes() == CONTENT
    allowed_s = len(CONTENT) / rate - 2.0  # two seconds' worth may come at once
    assert seconds >= max(allowed_s, 0.0)


async def test_a_slow_rate_takes_its_time(tmp_path: Path) -> None:
    with serving({"/a": CONTENT}) as server:
        started_s = time.monotonic()
        await download(server.url("/a"), tmp_path / "a", WANTED, Watcher(), limits=limited(max_bytes_per_s=60_000.0))
        assert time.monotonic() - started_s > len(CONTENT) / 60_000 - 2.5


async def test_a_server_that_stalls_is_found_out_with_a_rate_too(tmp_path: Path) -> None:
    with serving({"/a": CONTENT}) as server:
        server.plan.append(stall_after(2000))
        with pytest.raises(DownloadError, match="stalled"):
            await download(server.url("/a"), tmp_path / "a", WANTED, Watcher(), limits=limited(max_bytes_per_s=1e6))


async def test_headers_go_to_the_first_host_only(tmp_path: Path) -> None:
    with serving({"/a": CONTENT}) as other, serving({"/a": CONTENT}) as server:
        server.plan.append(redirect(other.url("/a")))
        access = Access(headers={"Authorization": "TargetToken secret"})
        await download(server.url("/a"), tmp_path / "a", WANTED, Watcher(), limits=LIMITS, access=access)
        assert server.requests[0][1]["authorization"] == "TargetToken secret"
        assert "authorization" not in other.requests[0][1]


@pytest.mark.parametrize(
    ("answer", "error", "asked"),
    [(503, DownloadError, 2), (502, DownloadError, 2), (429, DownloadError, 2), (407, RefusedDownloadError, 1),
     (403, RefusedDownloadError, 1)],
)  # fmt: skip
async def test_what_a_proxy_says_in_passing_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int, error: type[Exception], asked: int
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with proxying() as proxy:
        proxy.refuse = answer
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(error, match=f"the proxy answers {answer} .*HTTPS_PROXY") as caught:
            await download("https://files.example/a", tmp_path / "a", WANTED, Watcher(), limits=limited(attempts=2))
        assert type(caught.value) is error
        assert len(proxy.seen) == asked


async def test_the_reserve_of_the_disk_is_left_alone(tmp_path: Path) -> None:
    with serving({"/a": CONTENT}) as server, pytest.raises(ModelError, match="MB free"):
        await download(server.url("/a"), tmp_path / "a", WANTED, Watcher(), limits=limited(reserve_bytes=2**60))
