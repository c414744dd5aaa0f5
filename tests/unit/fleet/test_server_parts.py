"""Small parts of the fleet server that need no server."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.errors import ConfigError
from ota.server.ddi_json import Links
from ota.server.limits import MAX_KEYS, FailureLimits
from ota.server.settings import load_settings
from ota.server.tokens import hash_of, matches, new_token, write_secret
from ota.store.feedback import CANCEL, CONFIRMATION, DEPLOYMENT, outcome
from ota.store.rows import CLOSED, OPEN, ActionState, Report


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_failures_of_one_name_and_of_one_address() -> None:
    clock = Clock()
    limits = FailureLimits(clock)
    for _ in range(10):
        assert limits.wait_s("a", "box-1") == 0
        limits.note("a", "box-1")
    assert limits.wait_s("a", "box-1") == pytest.approx(10)
    assert limits.wait_s("a", "box-2") == limits.wait_s("b", "box-1") == 0
    clock.now_s += 10.01
    assert limits.wait_s("a", "box-1") == 0
    for n in range(200):
        limits.note("a", f"guess-{n}")
    assert 0 < limits.wait_s("a", "box-3") <= 1
    assert limits.wait_s("b", "box-3") == 0


def test_addresses_do_not_fill_the_memory() -> None:
    limits = FailureLimits(Clock())
    for n in range(MAX_KEYS + 50):
        limits.note(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "x")
    assert len(limits._named._left) == len(limits._addresses._left) == MAX_KEYS


def test_tokens() -> None:
    token = new_token()
    assert len(token) == 43
    assert token != new_token()
    assert matches(token, hash_of(token))
    assert not matches(token + "x", hash_of(token))
    assert not matches(token, None)
    assert not matches("", None)


def test_secret_is_for_its_owner_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        write_secret(path, "abc")
    finally:
        os.umask(before)
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "abc\n")
    with pytest.raises(FileExistsError):
        write_secret(path, "other")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="exists"):
        write_secret(tmp_path / "link", "abc")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("state", sorted(OPEN))
def test_every_report_leads_somewhere(state: ActionState) -> None:
    """Only an end or a refusal closes or reopens an action; every other word keeps it open."""
    executions = ("closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download")
    for kind in (DEPLOYMENT, CANCEL):
        for execution in executions:
            for finished in ("success", "failure", "none"):
                after = outcome(state, Report(kind, execution, finished))
                ends = execution == "canceled" or (
                    execution == "closed" and (kind == DEPLOYMENT or finished != "failure")
                )
                assert (after in CLOSED) == ends, (kind, execution, finished)
    assert outcome(state, Report(CONFIRMATION, "confirmed", "none")) is ActionState.PENDING
    assert outcome(state, Report(CONFIRMATION, "denied", "none")) is state


def test_links_quote_what_stands_in_them() -> None:
    links = Links("https://fleet.example/x", "default", "a?b#c:1")
    assert links.to("configData") == {"href": "https://fleet.example/x/default/controller/v1/a%3Fb%23c%3A1/configData"}


def test_options_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("data: state\nport: 1\ntenant: ${TENANT}\n")
    settings = load_settings(file, {"port": 2}, env={"TENANT": "north"})
    assert (settings.data, settings.port, settings.tenant) == (tmp_path / "state", 2, "north")
    assert settings.database_url == f"sqlite:///{tmp_path / 'state' / 'fleet.db'}"
    with pytest.raises(ConfigError, match="command line:port"):
        load_settings(file, {"port": -1}, env={"TENANT": "north"})
    with pytest.raises(ConfigError, match=r"fleet.yaml:3:tenant.*TENANT is not set"):
        load_settings(file, {}, env={})


def test_every_problem_at_once(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("data: state\nport: x\npolling: 5\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {}, env={})
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [(2, "port"), (3, "polling")]
