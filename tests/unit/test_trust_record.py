"""What a device holds for true survives a power loss at any point, and damage is never passed over in silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.tuf_repository import TufRepository, TufServer, release, serving_tuf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.errors import ConfigError, TransientError
from agent.update import trust
from agent.update.faults import UntrustedError
from agent.update.trust import BUILT, Trust
from agent.update.trust_record import Held, TrustRecord, _written

FILES = {"timestamp.json": b'{"t": 1}', "snapshot.json": b"\x00\xff", "root_history/2.root.json": b"{}"}
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def kept(folder: Path, files: dict[str, bytes], held: Held | None = None, seen: datetime | None = NOW) -> TrustRecord:
    """A record of `files`, as left in the workplace."""
    record = TrustRecord(folder)
    with record.locked():
        record.unfold(Held(files))
        record.keep(held if held is not None else record.load(), seen)
    return record


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    record = kept(tmp_path / "trust", FILES)
    held = record.load()
    assert (held.files, held.seen, held.notes) == (FILES, NOW, ())
    record.unfold(held)
    assert {name: (record.workplace / name).read_bytes() for name in FILES} == FILES


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    kept(tmp_path / "trust", FILES)
    for path in (tmp_path / "trust").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert stat.S_IMODE((tmp_path / "trust").stat().st_mode) == 0o700


def test_a_first_start_is_no_damage(tmp_path: Path) -> None:
    assert TrustRecord(tmp_path / "none").load() == Held()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_record_is_noticed_wherever_it_is_damaged(tmp_path: Path, data: st.DataObject) -> None:
    record = kept(tmp_path, FILES, Held())
    file = tmp_path / "trusted.record"
    content = file.read_bytes()
    (tmp_path / "trusted.record.before").unlink(missing_ok=True)
    if data.draw(st.booleans()):
        spoiled = content[: data.draw(st.integers(0, len(content) - 2))]
    else:
        at = data.draw(st.integers(0, len(content) - 2))
        spoiled = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    file.write_bytes(spoiled)
    held = record.load()
    assert held.files == {}
    assert "protection against rollback starts anew" in held.notes[0]


def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    record = kept(tmp_path, FILES)
    kept(tmp_path, FILES | {"timestamp.json": b'{"t": 2}'})
    (tmp_path / "trusted.record").write_bytes(b"")
    held = record.load()
    assert held.files == FILES
    assert "the one before it is used" in held.notes[0]
    kept(tmp_path, FILES, held)
    assert record.load().notes == ()  # mended


def test_names_in_a_record_stay_in_the_workplace(tmp_path: Path) -> None:
    (tmp_path / "trusted.record").write_bytes(_written(Held({"../../evil.json": b"{}"})))
    held = TrustRecord(tmp_path).load()
    assert held.files == {}
    assert "evil" in held.notes[0]


class PowerLossError(BaseException):
    """The device is off: no handler of ours sees it."""


CALLS = ("open", "fsync", "unlink", "replace", "rename")


@pytest.mark.parametrize("before", [1, 2])
def test_a_power_loss_between_any_two_steps_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Dies at the n-th system call of `keep`, for every n."""
    new = FILES | {"timestamp.json": b'{"t": 9}'}
    for n in range(200):
        folder = tmp_path / str(n)
        for generation in range(before):
            kept(folder, FILES | {"targets.json": b"%d" % generation})
        old = TrustRecord(folder).load().files
        with monkeypatch.context() as patch:
            survived = _die_at(patch, n, lambda folder=folder: void(kept(folder, new)))  # type: ignore[misc]
        held = TrustRecord(folder).load()
        assert held.files in (old, new)
        assert held.notes == ()
        assert kept(folder, new).load().files == new  # and it can go on
        if survived:
            assert n > 5
            return
    pytest.fail("never came to the end")


def void(_: object) -> None:
    """For lambdas that return nothing."""


def _die_at(patch: pytest.MonkeyPatch, n: int, work: Callable[[], None]) -> bool:
    count = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > n:
                raise PowerLossError
            return call(*args, **options)

        return stand_in

    for name in CALLS:
        patch.setattr(os, name, dying(getattr(os, name)))
    try:
        work()
    except PowerLossError:
        return False
    return True


# --- with a repository ------------------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[tuple[TufRepository, TufServer]]:
    repository = TufRepository()
    repository.add(release(), b"model")
    repository.publish()
    with serving_tuf(repository) as server:
        yield repository, server


def test_a_torn_workplace_does_not_let_an_old_repository_in(
    served: tuple[TufRepository, TufServer], tmp_path: Path
) -> None:
    """python-tuf alone would take an empty timestamp.json for none at all, and the old state for the newest."""
    repository, server = served
    old = repository.state()
    repository.publish()
    device = Trust(tmp_path, server.url(), repository.root_bytes())
    device.refresh()
    for file in (tmp_path / "metadata").rglob("*.json"):
        if not file.is_symlink():
            file.write_bytes(b"")
    repository.files = old
    with pytest.raises(UntrustedError) as caught:
        device.refresh()
    assert caught.value.reason == "rollback"
    assert device.notes == ()


def test_starting_anew_is_said_aloud(served: tuple[TufRepository, TufServer], tmp_path: Path) -> None:
    with capture_logs() as logs:
        _start_anew(served, tmp_path)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("trust_record_damaged", "warning")]


def _start_anew(served: tuple[TufRepository, TufServer], tmp_path: Path) -> None:
    repository, server = served
    device = Trust(tmp_path, server.url(), repository.root_bytes())
    device.refresh()
    repository.publish()
    device.refresh()
    for name in ("trusted.record", "trusted.record.before"):
        (tmp_path / name).write_bytes(b"torn")
    assert device.find(release().path).length == len(b"model")
    assert "protection against rollback starts anew" in device.notes[0]
    device.refresh()
    assert device.notes == ()


def test_roots_are_followed_from_the_record_when_the_server_hides_them(
    served: tuple[TufRepository, TufServer], tmp_path: Path
) -> None:
    """An attacker with the old timestamp key cannot bring the device back to the root that named it."""
    repository, server = served
    device = Trust(tmp_path, server.url(), repository.root_bytes())
    stolen = repository.rotate("timestamp")
    repository.publish("root", "timestamp")
    device.refresh()
    del repository.files["/metadata/2.root.json"]
    repository.signers["timestamp"] = stolen
    repository.publish("timestamp")
    with pytest.raises(UntrustedError) as caught:
        device.refresh()
    assert caught.value.reason == "signature"


def test_what_was_learned_before_an_error_is_kept(served: tuple[TufRepository, TufServer], tmp_path: Path) -> None:
    repository, server = served
    device = Trust(tmp_path, server.url(), repository.root_bytes())
    device.refresh()
    old = repository.state()
    repository.publish()
    newest = repository.state()
    del repository.files[repository.address("snapshot")]
    with pytest.raises(TransientError):
        device.refresh()
    repository.files = old  # the newer timestamp was seen: no way back
    with pytest.raises(UntrustedError) as caught:
        device.refresh()
    assert caught.value.reason == "rollback"
    repository.files = newest
    device.refresh()


def test_one_process_at_a_time(served: tuple[TufRepository, TufServer], tmp_path: Path) -> None:
    repository, server = served
    device = Trust(tmp_path, server.url(), repository.root_bytes())
    with TrustRecord(tmp_path).locked(), pytest.raises(TransientError, match="another process"):
        device.refresh()
    device.refresh()


# --- the clock --------------------------------------------------------------------------------------------------------


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr(trust, "datetime", Clock)


@pytest.mark.parametrize("moment", [datetime(1970, 1, 1, tzinfo=UTC), BUILT - timedelta(seconds=1)])
def test_a_clock_before_the_agent_was_built(
    served: tuple[TufRepository, TufServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: datetime
) -> None:
    repository, server = served
    at(monkeypatch, moment)
    with pytest.raises(UntrustedError, match="set the clock") as caught:
        Trust(tmp_path, server.url(), repository.root_bytes()).refresh()
    assert caught.value.reason == "clock"
    assert f"{moment:%Y-%m-%d}" in str(caught.value)
    assert server.requests == []


def test_a_clock_that_went_back_after_the_last_success(
    served: tuple[TufRepository, TufServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else expired metadata could be brought back to life by a false time server."""
    repository, server = served
    device = Trust(tmp_path, server.url(), repository.root_bytes(), not_before=datetime(2000, 1, 1, tzinfo=UTC))
    device.refresh()
    now = datetime.now(UTC)
    at(monkeypatch, now - timedelta(hours=12))
    device.refresh()  # a time zone that was mended
    at(monkeypatch, now - timedelta(days=2))
    with pytest.raises(UntrustedError, match="last seen") as caught:
        device.refresh()
    assert caught.value.reason == "clock"


def test_the_agent_was_built_before_today() -> None:
    assert datetime(2026, 1, 1, tzinfo=UTC) < BUILT <= datetime.now(UTC)


@pytest.mark.parametrize("root", [b"", b"{}", b"no root"])
def test_no_root_of_trust(tmp_path: Path, root: bytes) -> None:
    with pytest.raises(ConfigError, match=r"update\.root_file"):
        Trust(tmp_path, "http://127.0.0.1:1", root)


def test_a_root_of_trust_that_nobody_signed(tmp_path: Path) -> None:
    repository = TufRepository()
    with pytest.raises(ConfigError, match="not a root of trust"):
        Trust(tmp_path, "http://127.0.0.1:1", repository.lay_out("root", []))
    with pytest.raises(ConfigError, match="it is timestamp metadata"):
        Trust(tmp_path, "http://127.0.0.1:1", repository.signed("timestamp"))


def test_nobody_there_is_no_attack(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="cannot reach"):
        Trust(tmp_path, "http://127.0.0.1:9", TufRepository().root_bytes()).refresh()
