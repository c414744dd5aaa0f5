"""Pulling a model from real HTTP servers that do everything wrong that servers do, and through a real proxy."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import resource
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.downloads import (
    FileServer,
    Watcher,
    announce,
    catalogue_entry,
    corrupted,
    cut_after,
    deaf_to_ranges,
    encoded,
    endless,
    good,
    page,
    proxying,
    redirect,
    say_nothing,
    serving,
    stall_after,
    status,
    trickle,
    wrong_range,
)
from fakes.graphs import rtmo_graph, stgcn_graph

from agent.catalogue.entries import Entry
from agent.catalogue.pull import PullOptions, pull, pull_file
from agent.catalogue.store import ModelStore
from agent.config.schema import PoseConfig
from agent.errors import ModelError, TrustError
from agent.plugins import create_pose_estimator
from agent.runtime.bundle import load_bundle, sha256_of
from agent.transfer.download import Limits

LIMITS = Limits(
    connect_s=2, stall_s=0.3, stall_bytes=2048, attempts=3, initial_wait_s=0.01, max_wait_s=0.05, redirects=3
)
OPTIONS = PullOptions(limits=LIMITS)
SIGNED = "/model.onnx?sig=a%2Fb%3D%2B&name=%7e1;%41"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 450 kB."""
    return rtmo_graph(tmp_path_factory.mktemp("model") / "model.onnx", size=(64, 96), conv_layers=3)


@pytest.fixture
def server(model: Path) -> Iterator[FileServer]:
    with serving({"/model.onnx": model.read_bytes()}) as running:
        yield running


@pytest.fixture
def mirror(model: Path) -> Iterator[FileServer]:
    with serving({"/model.onnx": model.read_bytes()}) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def entry(model: Path, *urls: str, **changes: object) -> Entry:
    sources = [{"name": f"source{index}", "url": url} for index, url in enumerate(urls)]
    return Entry.model_validate(catalogue_entry(model, sources, **changes))


def visible(store: ModelStore) -> list[str]:
    """Bundles that somebody could load."""
    found = [folder.name for folder in (store.root / "sha256").glob("*")]
    assert len(found) == len(store.names())
    return list(store.names())


def leftovers(store: ModelStore) -> list[Path]:
    return [path for name in ("partial", "staging") for path in (store.root / name).glob("*")]


def tampered(store: ModelStore, content: bytes, size: int) -> None:
    """A part of `size` bytes from an earlier run, wrong in the middle."""
    part = store.partial(hashlib.sha256(content).hexdigest())
    start = bytearray(content[:size])
    start[size // 2] ^= 1
    part.write_bytes(start)


# --- what should come of it -------------------------------------------------------------------------------------------


def test_a_pulled_file_is_a_verified_bundle_that_serves(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    folder = pull(entry(model, server.url()), store, watcher, OPTIONS)
    bundle = load_bundle(store.root / "pulled" / "rtmo-x")
    assert bundle.path.resolve() == folder
    assert folder.name == sha256_of(folder / "manifest.json")
    assert bundle.model_sha256 == sha256_of(model)
    assert bundle.manifest is not None
    assert bundle.manifest.provenance is not None
    assert (bundle.manifest.provenance.trust, bundle.manifest.version) == ("catalogue", "2020.1")
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.origin == "self"
    assert bundle.manifest.figures == {"coco_ap": 0.5}
    assert sha256_of(model) in (folder / "CARD.md").read_text()
    assert leftovers(store) == []
    assert watcher.largest == model.stat().st_size
    assert any("answers of this CPU recorded: 1 people" in note for note in watcher.notes)
    estimator = create_pose_estimator(PoseConfig(model=bundle.path, device="cpu"))
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[10:40, 20:50] = 255
    assert len(estimator.estimate([picture])[0]) == 1
    estimator.close()


def test_everybody_may_read_what_was_pulled(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    before = os.umask(0o077)
    try:
        folder = pull(entry(model, server.url()), store, watcher, OPTIONS)
    finally:
        os.umask(before)
    for parent in (store.root, folder.parent, store.root / "pulled"):
        assert parent.stat().st_mode & 0o777 == 0o755
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_the_same_file_again_is_the_same_bundle(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    first = pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert pull(entry(model, server.url()), store, watcher, OPTIONS) == first
    assert visible(store) == ["rtmo-x"]


def test_a_new_version_takes_the_place_of_the_old_one(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    first = pull(entry(model, server.url()), store, watcher, OPTIONS)
    second = pull(entry(model, server.url(), version="2021.1"), store, watcher, OPTIONS)
    assert first != second
    assert not first.exists()
    assert visible(store) == ["rtmo-x"]


# --- broken transfers -------------------------------------------------------------------------------------------------


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [cut_after(200_000), cut_after(100_000)]
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    ranges = [headers.get("range") for _, headers in server.requests]
    assert ranges == [None, "bytes=200000-", "bytes=300000-"]
    assert [headers.get("if-range") for _, headers in server.requests[1:]] == [server.etag] * 2
    assert any("goes on at 0.2 MB" in note for note in watcher.notes)


def test_another_run_goes_on_where_the_last_one_gave_up(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [cut_after(100_000), status(500), status(503)]
    with pytest.raises(ModelError, match="answers 503"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert visible(store) == []
    server.requests.clear()
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert [headers.get("range") for _, headers in server.requests] == ["bytes=100000-"]


def test_another_source_goes_on_where_the_first_one_gave_up(
    model: Path, server: FileServer, mirror: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [cut_after(150_000), status(404)]
    pull(entry(model, server.url(), mirror.url()), store, watcher, OPTIONS)
    (_, headers) = mirror.requests[0]
    assert headers["range"] == "bytes=150000-"
    assert "if-range" not in headers  # its entity tags are its own; the checksum judges


@pytest.mark.parametrize(
    "answer", [deaf_to_ranges, status(416), wrong_range], ids=lambda value: getattr(value, "__name__", "416")
)
def test_a_server_that_cannot_go_on_starts_over(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, answer: Callable[..., None]
) -> None:
    server.plan = [cut_after(100_000), answer]
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert visible(store) == ["rtmo-x"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [cut_after(100_000), status(500), status(500)]
    with pytest.raises(ModelError):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    server.etag = '"v2"'
    server.requests.clear()
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert server.requests[0][1]["if-range"] == '"v1"'
    assert len(server.requests) == 1  # the whole file came as the answer


def test_a_part_with_wrong_bytes_is_thrown_away(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    tampered(store, model.read_bytes(), 100_000)
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert [headers.get("range") for _, headers in server.requests] == ["bytes=100000-", None]
    assert any("starting over" in note for note in watcher.notes)


def test_a_part_that_is_whole_needs_no_network(model: Path, store: ModelStore, watcher: Watcher) -> None:
    content = model.read_bytes()
    store.partial(hashlib.sha256(content).hexdigest()).write_bytes(content)
    pull(entry(model, "http://127.0.0.1:9/model.onnx"), store, watcher, OPTIONS)
    assert visible(store) == ["rtmo-x"]


def test_a_part_longer_than_the_file_is_thrown_away(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    content = model.read_bytes()
    store.partial(hashlib.sha256(content).hexdigest()).write_bytes(content + b"more")
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert server.requests[0][1].get("range") is None


@pytest.mark.parametrize("behaviour", [stall_after(50_000), trickle, say_nothing], ids=["stall", "trickle", "silence"])
def test_a_server_that_stalls_is_left_and_tried_again(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, behaviour: Callable[..., None]
) -> None:
    server.plan = [behaviour]
    started_s = time.monotonic()
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert time.monotonic() - started_s < 5
    assert any("stalled" in note for note in watcher.notes)
    assert visible(store) == ["rtmo-x"]


def test_stalling_for_good_ends_in_an_error(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [say_nothing] * 3
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:\d+ stalled"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert len(server.requests) == 3
    assert visible(store) == []


def test_a_line_that_breaks_every_megabyte_gets_there(store: ModelStore, watcher: Watcher, tmp_path: Path) -> None:
    big = rtmo_graph(tmp_path / "big.onnx", size=(64, 96), conv_layers=40)
    with serving({"/model.onnx": big.read_bytes()}) as server:
        server.plan = [cut_after(1_000_000)] * 5
        pull(entry(big, server.url()), store, watcher, OPTIONS)
        assert len(server.requests) == 6
    assert visible(store) == ["rtmo-x"]


def test_server_errors_are_tried_again_and_a_missing_file_is_not(
    model: Path, server: FileServer, mirror: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [status(404)]
    mirror.plan = [status(500), status(429, Retry_After="3600")]
    started_s = time.monotonic()
    pull(entry(model, server.url(), mirror.url()), store, watcher, OPTIONS)
    assert time.monotonic() - started_s < 5  # nobody makes us wait for an hour
    assert (len(server.requests), len(mirror.requests)) == (1, 3)
    assert any("answers 404" in note for note in watcher.notes)


# --- wrong bytes ------------------------------------------------------------------------------------------------------


def test_wrong_bytes_never_become_visible(model: Path, server: FileServer, store: ModelStore, watcher: Watcher) -> None:
    server.plan = [corrupted]
    with pytest.raises(TrustError, match="not the released file: sha256 is"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert visible(store) == []
    assert leftovers(store) == []


def test_after_wrong_bytes_the_next_source_has_its_chance(
    model: Path, server: FileServer, mirror: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [corrupted]
    pull(entry(model, server.url(), mirror.url()), store, watcher, OPTIONS)
    assert load_bundle(store.root / "pulled" / "rtmo-x").model_sha256 == sha256_of(model)


def test_a_failed_pull_leaves_the_old_model_in_place(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    server.plan = [corrupted]
    with pytest.raises(TrustError):
        pull(entry(model, server.url(), version="2021.1"), store, watcher, OPTIONS)
    assert load_bundle(store.root / "pulled" / "rtmo-x").title == "rtmo-x 2020.1"


def test_no_more_is_written_than_was_announced(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [endless]
    with pytest.raises(ModelError, match="sends more than announced; it should have"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert watcher.largest <= model.stat().st_size
    assert all(path.stat().st_size <= model.stat().st_size for path in leftovers(store))


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (page, r"has a file of 26 bytes, it should have [\d,]+ \(hint: a page of a proxy or a login\?\)"),
        (announce(123_456_789), "has a file of 123,456,789 bytes"),
        (encoded, "sends the file encoded"),
        (status(204), "answers 204"),
        (status(403), "answers 403"),
    ],
)
def test_what_cannot_be_the_file_is_refused_at_once(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, behaviour: Callable[..., None], words: str
) -> None:
    server.plan = [behaviour]
    with pytest.raises(ModelError, match=words):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert len(server.requests) == 1


def test_a_disk_without_room_is_seen_before_the_first_byte(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    size = 10**17
    server.plan = [announce(size)]
    huge = entry(model, server.url(), file={"bytes": size, "sha256": "0" * 64})
    with pytest.raises(ModelError, match=r"MB free, 100,000,000,064 MB needed \(hint: make room"):
        pull(huge, store, watcher, OPTIONS)
    assert watcher.largest == 0


def test_a_disk_that_fails_on_the_way_is_named(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ModelError, match=r"\.part: cannot be written: File too large"):
            pull(entry(model, server.url()), store, watcher, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.requests) == 1


# --- redirects --------------------------------------------------------------------------------------------------------


def test_redirects_to_another_host_are_followed(
    model: Path, server: FileServer, mirror: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [redirect("/moved"), redirect(mirror.url(SIGNED, host="localhost"), 307)]
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert [path for path, _ in mirror.requests] == [SIGNED]  # to the letter


def test_redirects_without_end_are_not(model: Path, server: FileServer, store: ModelStore, watcher: Watcher) -> None:
    server.plan = [redirect("/model.onnx")] * 20
    with pytest.raises(ModelError, match="redirects more than 3 times"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "target", ["", "file:///etc/hostname", "ftp://127.0.0.1/model.onnx", "http://[::1", "mailto:a@b"]
)
def test_redirects_to_anything_but_the_web_are_refused(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, target: str
) -> None:
    server.plan = [redirect(target)]
    with pytest.raises(ModelError, match="redirects to no web address"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)


def test_no_password_goes_where_a_redirect_wants_it(
    model: Path, server: FileServer, mirror: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.plan = [redirect(mirror.url().replace("//", "//user:secret@"))]
    pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert "authorization" not in mirror.requests[0][1]


# --- network and proxy ------------------------------------------------------------------------------------------------


def test_without_a_network_it_says_so_and_what_to_do(model: Path, store: ModelStore, watcher: Watcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/model.onnx"
        unknown = "https://host.invalid/model.onnx"
        with pytest.raises(ModelError) as caught:
            pull(entry(model, url, unknown), store, watcher, OPTIONS)
    text = str(caught.value)
    assert "cannot reach 127.0.0.1" in text
    assert "cannot reach host.invalid" in text
    assert "There is no network here" in text
    assert f"sha256 {sha256_of(model)}" in text
    assert "recognizer-agent models pull rtmo-x --file PATH" in text


def test_requests_go_through_the_proxy_of_the_environment(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxying() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        pull(entry(model, server.url()), store, watcher, OPTIONS)
        assert proxy.seen == [f"GET {server.url()}"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        pull(entry(model, server.url()), store, watcher, OPTIONS)
        assert len(proxy.seen) == 1


def test_a_proxy_that_is_gone_or_refuses_is_named(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot reach the proxy 127\.0\.0\.1:9: .*HTTPS_PROXY"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    with proxying() as proxy:
        proxy.refuse = 407
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        secure = f"https://127.0.0.1:{server.port}/model.onnx"
        with pytest.raises(ModelError, match="the proxy answers 407"):
            pull(entry(model, secure), store, watcher, OPTIONS)
        assert proxy.seen == [f"CONNECT 127.0.0.1:{server.port}"]
    assert server.requests == []


@pytest.mark.parametrize("proxy", ["127.0.0.1:3128", "http://127.0.0.1:99999"])
def test_a_proxy_whose_address_is_none_is_told_from_the_models_address(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ModelError, match=r"not a web address: .*proxy looks like http://host:3128; see HTTPS_PROXY"):
        pull(entry(model, server.url()), store, watcher, OPTIONS)
    assert server.requests == []


def test_a_server_that_does_not_speak_tls_is_no_reason_to_hang(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    with pytest.raises(ModelError, match="no trustworthy TLS connection"):
        pull(entry(model, f"https://127.0.0.1:{server.port}/model.onnx"), store, watcher, OPTIONS)


@pytest.mark.parametrize("proxied", [False, True], ids=["server", "proxy"])
def test_a_host_that_takes_the_call_and_says_nothing_is_left(
    model: Path, store: ModelStore, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    """No TLS handshake, no answer to CONNECT."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        if proxied:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{place}")
        url = "https://host.invalid/model.onnx" if proxied else f"https://{place}/model.onnx"
        started_s = time.monotonic()
        quick = PullOptions(limits=dataclasses.replace(LIMITS, connect_s=0.3, attempts=2))
        with pytest.raises(ModelError, match=r"no answer|stalled"):
            pull(entry(model, url), store, watcher, quick)
        assert time.monotonic() - started_s < 10


def test_a_mirror_may_be_named_and_its_file_is_judged_the_same(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    known = entry(model, "https://host.invalid/model.onnx")
    server.plan = [corrupted]
    mirror = PullOptions(source=server.url(), limits=LIMITS)
    with pytest.raises(TrustError):
        pull(known, store, watcher, mirror)
    pull(known, store, watcher, mirror)
    with pytest.raises(ModelError, match=r"no source 'moon' .*source0"):
        pull(known, store, watcher, PullOptions(source="moon"))
    with pytest.raises(ModelError, match="without user and password"):
        pull(known, store, watcher, PullOptions(source="https://me:secret@host.invalid/model.onnx"))


# --- archives and files brought by hand -------------------------------------------------------------------------------


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """An archive whose first member is no stream of its compression any more."""
    begin = 30 + len("end2end.onnx")
    return content[:begin] + b"\xff" * 8 + content[begin + 8 :]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another export of the same contract."""
    return rtmo_graph(tmp_path / "other.onnx", size=(64, 96))


def zip_entry(model: Path, url: str) -> Entry:
    return Entry.model_validate(catalogue_entry(model, [{"name": "zips", "url": url, "member": "end2end.onnx"}]))


def test_an_archive_of_unknown_checksum_is_not_asked_without_consent(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    with pytest.raises(ModelError, match="--allow-unverified takes it"):
        pull(zip_entry(model, server.url("/a.zip")), store, watcher, OPTIONS)
    assert server.requests == []


def test_with_consent_the_first_file_counts_and_another_one_later_does_not(
    model: Path, other: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    chosen = PullOptions(allow_unverified=True, limits=LIMITS)
    zipped = zip_entry(model, server.url("/a.zip"))
    server.files["/a.zip"] = archive({"rtmo/end2end.onnx": other.read_bytes(), "rtmo/deploy.json": b"{}"})
    pull(zipped, store, watcher, chosen)
    bundle = load_bundle(store.root / "pulled" / "rtmo-x")
    assert bundle.title == "rtmo-x 2020.1+unverified"
    assert bundle.manifest is not None
    assert bundle.manifest.provenance is not None
    assert bundle.manifest.provenance.trust == "first_use"
    assert "**unverified**" in (bundle.path / "CARD.md").read_text()
    pull(zipped, store, watcher, chosen)  # the same again is fine
    changed = rtmo_graph(other.parent / "changed.onnx", size=(64, 96), conv_layers=1)
    server.files["/a.zip"] = archive({"end2end.onnx": changed.read_bytes()})
    with pytest.raises(TrustError, match="not the file that was taken here first"):
        pull(zipped, store, watcher, chosen)
    assert load_bundle(store.root / "pulled" / "rtmo-x").model_sha256 == sha256_of(other)


def test_an_archive_with_the_very_file_of_the_catalogue_is_verified(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.files["/a.zip"] = archive({"end2end.onnx": model.read_bytes()})
    pull(zip_entry(model, server.url("/a.zip")), store, watcher, PullOptions(allow_unverified=True, limits=LIMITS))
    assert load_bundle(store.root / "pulled" / "rtmo-x").title == "rtmo-x 2020.1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "not a sound zip archive"),
        (damaged(archive({"end2end.onnx": b"12345678" * 9000})), "not a sound zip archive"),
        (archive({"readme.txt": b"x"}), "holds 0 files called end2end.onnx"),
        (archive({"a/end2end.onnx": b"x", "b/end2end.onnx": b"y"}), "holds 2 files"),
        (archive({"end2end.onnx": b"x" * 2_000_000}), "larger than 1,000,000 bytes"),
        (archive({"end2end.onnx": b"not a model"}), "not an ONNX file"),
    ],
)
def test_archives_without_a_model_are_refused(
    model: Path, server: FileServer, store: ModelStore, watcher: Watcher, content: bytes, words: str
) -> None:
    server.files["/a.zip"] = content
    source = {"name": "zips", "url": server.url("/a.zip"), "member": "end2end.onnx", "max_bytes": 1_000_000}
    zipped = Entry.model_validate(catalogue_entry(model, [source]))
    with pytest.raises(ModelError, match=words):
        pull(zipped, store, watcher, PullOptions(allow_unverified=True, limits=LIMITS))
    assert visible(store) == []
    assert leftovers(store) == []


def test_a_broken_archive_transfer_goes_on_only_with_the_servers_word(
    model: Path, other: Path, server: FileServer, store: ModelStore, watcher: Watcher
) -> None:
    server.files["/a.zip"] = archive({"end2end.onnx": model.read_bytes()})
    server.plan = [cut_after(2000), good]
    pull(zip_entry(model, server.url("/a.zip")), store, watcher, PullOptions(allow_unverified=True, limits=LIMITS))
    assert server.requests[1][1]["if-range"] == server.etag
    server.etag = 'W/"weak"'
    server.requests.clear()
    server.plan = [cut_after(2000), good]
    pull(zip_entry(model, server.url("/a.zip")), store, watcher, PullOptions(allow_unverified=True, limits=LIMITS))
    assert "range" not in server.requests[1][1]


def test_plain_http_without_a_checksum_is_refused(model: Path, store: ModelStore, watcher: Watcher) -> None:
    zipped = zip_entry(model, "http://host.invalid/a.zip")
    with pytest.raises(ModelError, match="plain http, and no checksum to judge the file by"):
        pull(zipped, store, watcher, PullOptions(allow_unverified=True, limits=LIMITS))


def test_a_file_brought_by_hand_is_judged_like_a_download(
    model: Path, other: Path, store: ModelStore, watcher: Watcher, tmp_path: Path
) -> None:
    known = entry(model, "https://host.invalid/model.onnx")
    with pytest.raises(TrustError, match="not the file of the catalogue"):
        pull_file(known, other, store, watcher)
    assert visible(store) == []
    pull_file(known, model, store, watcher)
    assert load_bundle(store.root / "pulled" / "rtmo-x").title == "rtmo-x 2020.1"
    brought = tmp_path / "brought.zip"
    brought.write_bytes(archive({"x/end2end.onnx": other.read_bytes()}))
    pull_file(known, brought, store, watcher, PullOptions(allow_unverified=True))
    assert load_bundle(store.root / "pulled" / "rtmo-x").title == "rtmo-x 2020.1+unverified"


def test_a_file_longer_than_announced_is_not_copied_to_its_end(
    model: Path, store: ModelStore, watcher: Watcher, tmp_path: Path
) -> None:
    source = {"name": "somewhere", "url": "https://host.invalid/m", "max_bytes": 1_000_000}
    known = Entry.model_validate(catalogue_entry(model, [source]))
    announced = model.stat().st_size
    longer = tmp_path / "longer.onnx"
    longer.write_bytes(model.read_bytes())
    os.truncate(longer, 1 << 40)  # sparse; the process may write a little more than is announced, and dies of the rest
    with file_size_limit(announced + (1 << 20)):
        with pytest.raises(TrustError) as refused:
            pull_file(known, longer, store, watcher)
        with pytest.raises(ModelError) as too_long:
            pull_file(known, longer, store, watcher, PullOptions(allow_unverified=True))
    told = f"not the file of the catalogue: larger than its {announced:,} bytes"
    consent = "(hint: --allow-unverified takes it as it is, at your own risk)"
    assert str(refused.value) == f"{longer}: {told} {consent}"
    assert str(too_long.value).startswith(f"{longer}: larger than 1,000,000 bytes, the most that is taken")
    assert (visible(store), leftovers(store)) == ([], [])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_not_read(
    model: Path, store: ModelStore, watcher: Watcher, tmp_path: Path, kind: str
) -> None:
    place = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "folder":
        place.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    with pytest.raises(ModelError, match=f"{place}: a folder, pipe or device, not a file"):
        pull_file(entry(model, "https://host.invalid/m"), place, store, watcher)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files of this process may not become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- a right checksum is not enough -----------------------------------------------------------------------------------


def test_a_model_of_another_contract_is_refused(store: ModelStore, watcher: Watcher, tmp_path: Path) -> None:
    wrong = stgcn_graph(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="is not what the catalogue promises: the graph has no input 'input'"):
        pull_file(entry(wrong, "https://host.invalid/m"), wrong, store, watcher)
    size = rtmo_graph(tmp_path / "size.onnx", size=(32, 32))
    with pytest.raises(
        ModelError, match=r"should have the shape \(batch, 3, 64, 96\), the graph says input \(\?, 3, 32, 32\)"
    ):
        pull_file(entry(size, "https://host.invalid/m"), size, store, watcher)
    assert visible(store) == []


def test_a_model_that_reaches_for_other_files_is_refused(
    model: Path, store: ModelStore, watcher: Watcher, tmp_path: Path
) -> None:
    graph = onnx.load(model)
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    changed = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in changed.graph.initializer:
        for item in tensor.external_data:
            if item.key == "location":
                item.value = "../../../../etc/passwd"
    reaching = tmp_path / "reaching.onnx"
    reaching.write_bytes(changed.SerializeToString())
    with pytest.raises(
        ModelError, match=r"takes weights from '\.\./\.\./\.\./\.\./etc/passwd', which is outside its folder"
    ):
        pull_file(entry(reaching, "https://host.invalid/m"), reaching, store, watcher)


def test_two_pulls_of_one_model_do_not_meet(model: Path, store: ModelStore, watcher: Watcher) -> None:
    with store.lock("rtmo-x"), pytest.raises(ModelError, match="is being pulled by another process"):
        pull_file(entry(model, "https://host.invalid/m"), model, store, watcher)
