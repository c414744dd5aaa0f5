"""`recognizer-fleet keys|sign|publish` as an operator types them: what they print, what they leave, how they end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.bundles import make_bundle
from fakes.commandline import call

from ota.cli import COMMANDS, main
from ota.release.repository import Repository

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fleet(tmp_path: Path) -> Command:
    """`recognizer-fleet ARGUMENTS` in a folder with a passphrase file."""
    (tmp_path / "phrase").write_text("correct horse\n")
    (tmp_path / "phrase").chmod(0o600)

    def run(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        result = call(tmp_path, list(arguments), environment, main)
        assert result.returncode == code, result.stdout + result.stderr
        return result

    return run


REPO = Path(__file__).resolve().parents[2]
SITE = ("--repository", "repository")
OFFLINE = (*SITE, "--keys", "offline", "--passphrase-file", "phrase")
ONLINE = (*SITE, "--keys", "online")


@pytest.fixture
def opened(fleet: Command, tmp_path: Path) -> Repository:
    fleet("keys", "ceremony", *OFFLINE, "--online-keys", "online")
    fleet("publish", *ONLINE)
    return Repository(tmp_path / "repository")


def test_ceremony(fleet: Command, tmp_path: Path) -> None:
    result = fleet("keys", "ceremony", *OFFLINE, "--online-keys", "online")
    assert "complete (next: `recognizer-fleet publish`" in result.stdout
    assert sorted(file.name.partition("-")[0] for file in (tmp_path / "offline").glob("*.pem")) == ["root"] * 3 + [
        "targets"
    ]
    assert sorted(file.name.partition("-")[0] for file in (tmp_path / "online").glob("*.pem")) == [
        "snapshot",
        "timestamp",
    ]
    for file in (tmp_path / "offline").glob("*.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"ENCRYPTED" in file.read_bytes()
    result = fleet("publish", *ONLINE)
    assert result.stdout.splitlines()[-1].endswith("metadata/timestamp.json")


def test_a_ceremony_remembers_its_root_in_the_folder_that_it_makes(fleet: Command, tmp_path: Path) -> None:
    result = fleet("keys", "ceremony", *OFFLINE, "--online-keys", "online")
    assert "offline/trusted-root.json: root 1 is remembered" in result.stdout
    assert (tmp_path / "offline" / "trusted-root.json").is_file()
    assert not (tmp_path / "trusted-root.json").exists()
    staging = ("--repository", "staging", "--keys", "offline-staging", "--online-keys", "online-staging")
    fleet("keys", "ceremony", *staging, "--no-passphrase")
    assert (tmp_path / "offline-staging" / "trusted-root.json").is_file()


def test_a_forged_root_is_refused_after_a_ceremony_as_it_is_documented(
    fleet: Command, opened: Repository, tmp_path: Path
) -> None:
    """It names the operator's targets key, and his own first list lies beside it."""
    (half,) = (tmp_path / "offline").glob("targets-*.json")
    thief = ("--repository", "thief", "--keys", "evil", "--online-keys", "evil")
    fleet("keys", "ceremony", *thief, "--no-passphrase", "--public", str(half))
    shutil.copy(opened.metadata / "1.targets.json", tmp_path / "thief" / "staged" / "metadata")
    fleet("publish", *thief[:4])
    make_bundle(tmp_path / "tiny", golden=False)
    (target,) = (tmp_path / "offline").glob("targets-*.pem")
    for place in ("offline", str(target)):
        keys = ("--repository", "thief", "--keys", place, "--passphrase-file", "phrase")
        refused = fleet("sign", "tiny", *keys, code=1)
        assert "root 1 is not the one that" in refused.stderr
        assert "trusted-root.json remembers" in refused.stderr


def test_sign_publish_withdraw(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny", golden=False)
    result = fleet(
        "sign", "tiny", *OFFLINE, "--min-agent", "0.1.0", "--runtime", "cpu", "--runtime", "cuda", "--agreement", "0.9"
    )
    assert "pose/tiny-1.0.0.tar.zst: tiny 1.0.0 for pose, number 1," in result.stdout
    assert opened.releases() == []
    fleet("publish", *ONLINE)
    (signed,) = opened.releases()
    release = signed.release
    assert (release.min_agent, release.runtimes, release.minimum.agreement) == ("0.1.0", ("cpu", "cuda"), 0.9)
    fleet("sign", "--withdraw", signed.path, *OFFLINE)
    fleet("publish", *ONLINE)
    assert opened.releases() == []


def test_sign_a_configuration(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("health: {}\n")
    assert "--name" in fleet("sign", "site.yaml", *OFFLINE, code=78).stderr
    fleet("sign", "site.yaml", *OFFLINE, "--name", "site", "--release-version", "2026.1")
    fleet("publish", *ONLINE)
    assert opened.releases()[0].path == "configuration/site-2026.1.tar.zst"


def test_an_action_model_needs_its_service(fleet: Command, opened: Repository) -> None:
    models = Path(__file__).resolve().parents[2] / "models"
    result = fleet("sign", str(models / "fight-stgcn"), *OFFLINE, code=78)
    assert "--slot action/fight" in result.stderr
    fleet("sign", str(models / "fight-stgcn"), *OFFLINE, "--slot", "action/fight")
    result = fleet("sign", str(models / "pose-nano"), *OFFLINE, "--slot", "action/fight", code=1)
    assert "its task is pose" in result.stderr


def test_a_slot_that_nothing_was_for_is_told(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    fight = str(Path(__file__).resolve().parents[2] / "models" / "fight-stgcn")
    make_bundle(tmp_path / "tiny", golden=False)
    assert fleet("sign", fight, *OFFLINE, "--slot", "action/fight").stderr == ""  # the list was empty
    assert fleet("sign", "tiny", *OFFLINE).stderr == ""  # nobody has typed it
    result = fleet("sign", fight, *OFFLINE, "--slot", "action/fihgt")
    assert "warning: action/fihgt is new to the list, which has action/fight, pose (hint: a slip?" in result.stderr
    fleet("sign", "--withdraw", result.stdout.partition(":")[0], *OFFLINE)
    assert fleet("sign", fight, *OFFLINE, "--slot", "action/fight", "--again").stderr == ""


def test_list(fleet: Command, opened: Repository) -> None:
    result = fleet("keys", "list", *SITE, "--keys", "online")
    assert "root: 2 of 3 keys; version 1, holds until" in result.stdout
    assert result.stdout.count("(here)") == 2
    found = json.loads(fleet("keys", "list", *SITE, "--json").stdout)
    assert found["root"]["threshold"] == 2
    assert found["timestamp"]["version"] == 1


def test_rotate_and_revoke(fleet: Command, opened: Repository) -> None:
    old = opened.published().root.signed.roles["timestamp"].keyids[0]  # type: ignore[union-attr]
    fleet("keys", "rotate", "timestamp", *OFFLINE, "--online-keys", "online")
    fleet("publish", *ONLINE)
    root = opened.published().root.signed  # type: ignore[union-attr]
    assert root.version == 2
    assert root.roles["timestamp"].keyids != [old]
    fleet("keys", "rotate", "root", *OFFLINE)
    fleet("publish", *ONLINE)
    assert set(opened.published().root.signed.roles["root"].keyids).isdisjoint(root.roles["root"].keyids)  # type: ignore[union-attr]
    first = opened.published().root.signed.roles["root"].keyids[0]  # type: ignore[union-attr]
    fleet("keys", "revoke", "root", first[:8], *OFFLINE)
    fleet("publish", *ONLINE)
    assert len(opened.published().root.signed.roles["root"].keyids) == 2  # type: ignore[union-attr]


def test_a_release_machine_goes_on_from_what_is_published_elsewhere(fleet: Command, tmp_path: Path) -> None:
    """In the order of docs/ota.md: the first publication, which empties `staged/`, then the first release."""
    make_bundle(tmp_path / "tiny", golden=False)
    public = ("publish", "--repository", "public", "--from", "repository/staged", "--keys", "online")
    fleet("keys", "ceremony", *OFFLINE, "--online-keys", "online")
    fleet(*public)
    assert "bring metadata/ here from where it is published" in fleet("sign", "tiny", *OFFLINE, code=1).stderr
    for _ in range(2):
        shutil.copytree(tmp_path / "public" / "metadata", tmp_path / "repository" / "metadata", dirs_exist_ok=True)
        fleet("sign", "tiny", "--again", *OFFLINE)
        fleet(*public)
    assert [one.release.number for one in Repository(tmp_path / "public").releases()] == [2]


def test_a_key_of_someone_else(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    fleet("keys", "create", "targets", "--keys", "second", "--no-passphrase")
    (half,) = (tmp_path / "second").glob("*.json")
    fleet("keys", "rotate", "targets", *OFFLINE, "--keep", "--threshold", "2", "--public", str(half))
    result = fleet("publish", *ONLINE, code=1)
    assert "too few signatures" in result.stderr
    result = fleet("sign", "--staged", *SITE, "--keys", "second")
    assert "complete" in result.stdout
    fleet("publish", *ONLINE)
    assert opened.published().root.signed.roles["targets"].threshold == 2  # type: ignore[union-attr]
    wrong = fleet("keys", "rotate", "root", *OFFLINE, "--public", str(half), code=78)
    assert "made for targets, not for root" in wrong.stderr


def test_renew(fleet: Command, opened: Repository) -> None:
    assert "fresh enough" in fleet("publish", "--renew", *ONLINE).stdout
    result = fleet("publish", "--renew", *ONLINE, "--timestamp-days", "30")
    assert "metadata/timestamp.json" in result.stdout  # 3 of 30 days are less than half
    fleet("keys", "renew", *OFFLINE, "--root-days", "20")
    fleet("sign", "--renew", *OFFLINE)
    assert "warning: root expires on" in fleet("publish", *ONLINE).stderr


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_a_timer_with_keys_that_no_longer_count_says_so_at_once(
    fleet: Command, opened: Repository, tmp_path: Path, role: str
) -> None:
    shutil.copytree(tmp_path / "online", tmp_path / "timer")
    fleet("keys", "rotate", role, *OFFLINE, "--online-keys", "online")
    fleet("publish", *ONLINE)
    key = opened.published().root.signed.roles[role].keyids[0]  # type: ignore[union-attr]
    renewal = ("publish", "--renew", *SITE, "--keys", "timer")
    result = fleet(*renewal, code=1)
    assert "fresh enough, nothing was signed" in result.stdout
    told = (
        f"warning: {role} cannot be renewed: too few of its keys are here, needs 1 of {key[:8]} (hint: was it rotated?"
    )
    assert told in result.stderr
    shutil.copytree(tmp_path / "online", tmp_path / "timer", dirs_exist_ok=True)
    assert fleet(*renewal).stderr == ""


def test_a_renewal_that_one_key_is_missing_for_does_what_it_can(
    fleet: Command, opened: Repository, tmp_path: Path
) -> None:
    for file in (tmp_path / "online").glob("snapshot-*"):
        file.unlink()
    result = fleet("publish", "--renew", *ONLINE, "--timestamp-days", "30", code=1)
    assert "metadata/timestamp.json" in result.stdout
    assert "snapshot cannot be renewed" in result.stderr


def test_keys_from_the_credentials_of_systemd(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    result = fleet(
        "publish", "--renew", *SITE, "--timestamp-days", "30", CREDENTIALS_DIRECTORY=str(tmp_path / "online")
    )
    assert "metadata/timestamp.json" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "COMMAND"),
        (("sign",), 2, "required"),
        (("sign", "tiny", "--renew", *OFFLINE), 2, "not allowed with"),
        (("keys", "create", "king", "--keys", "x"), 2, "invalid choice"),
        (("keys", "revoke", "root", "1", "--threshold", "two"), 2, "expected a whole number, got 'two'"),
        (("rollout", "show", "first"), 2, "argument ID: expected a whole number, got 'first'"),
        (("rollout", "abort", "0"), 2, "argument ID: expected 1 or more, got 0"),
        (("serve", "--port", "http"), 2, "argument --port: expected a whole number, got 'http'"),
        (("sign", "tiny", *SITE), 78, "where are the keys?"),
        (("sign", "nowhere", *OFFLINE), 1, "neither a bundle folder nor a YAML file"),
        (("sign", "--withdraw", "pose/none-1.tar.zst", *OFFLINE), 1, "no target"),
        (("publish", *ONLINE), 1, "nothing is staged"),
        (("publish", *SITE, "--keys", "nowhere"), 78, "no such key file or folder"),
        (("keys", "ceremony", *OFFLINE), 1, "a repository already"),
        (("keys", "list", "--repository", "elsewhere"), 1, "nothing is published there yet"),
    ],
)
def test_what_cannot_be_done_is_said(
    fleet: Command, opened: Repository, arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert words in fleet(*arguments, code=code).stderr


def test_a_wrong_passphrase(fleet: Command, opened: Repository, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("battery staple\n")
    (tmp_path / "wrong").chmod(0o600)
    result = fleet("sign", "--renew", *SITE, "--keys", "offline", "--passphrase-file", "wrong", code=78)
    assert "no passphrase given opens this key" in result.stderr
    assert "staple" not in result.stderr
    (tmp_path / "wrong").chmod(0o644)
    result = fleet("sign", "--renew", *SITE, "--keys", "offline", "--passphrase-file", "wrong", code=78)
    assert "others can read or write it" in result.stderr


def at_a_terminal(folder: Path, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """The command with a person at the keyboard, who answers each question in turn; exit code and screen."""
    person, terminal = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "ota.cli", *arguments],
        cwd=folder, env={"PATH": "/usr/bin", "PYTHONPATH": str(REPO)}, stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    screen = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody is there any more
        while part := os.read(person, 4096):
            screen += part
            if part.rstrip().endswith(b":") and answers:
                os.write(person, answers.pop(0).encode() + b"\n")
    os.close(person)
    return process.wait(30), screen.decode()


def test_a_person_is_asked_twice_for_a_new_passphrase_and_once_for_all_keys(tmp_path: Path) -> None:
    code, screen = at_a_terminal(
        tmp_path, ["keys", "ceremony", "--repository", "repository", "--keys", "keys"], ["secret", "secret"]
    )
    assert code == 0, screen
    assert screen.count("passphrase for") == 1
    assert "secret" not in screen
    code, screen = at_a_terminal(
        tmp_path, ["sign", "--staged", "--repository", "repository", "--keys", "keys"], ["secret"]
    )
    assert code == 0, screen
    code, screen = at_a_terminal(
        tmp_path, ["sign", "--staged", "--repository", "repository", "--keys", "keys"], ["wrong"]
    )
    assert code == 78
    assert "no passphrase given opens this key" in screen


def test_two_different_new_passphrases(tmp_path: Path) -> None:
    code, screen = at_a_terminal(tmp_path, ["keys", "create", "root", "--keys", "keys"], ["secret", "secert"])
    assert code == 78
    assert "not the same" in screen
    assert not (tmp_path / "keys").exists()


def test_no_terminal_to_ask_at(fleet: Command) -> None:
    result = fleet("keys", "create", "root", "--keys", "new", code=78)
    assert "no terminal to ask at" in result.stderr


def test_asking_for_help_loads_nothing_heavy() -> None:
    """The parser is built before anything is imported that costs time."""
    heavy = ("tuf", "sqlalchemy", "aiohttp", "onnxruntime", "numpy", "cryptography")
    script = f"import sys; from ota.cli import build_parser; build_parser(); print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_command_is_there() -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
