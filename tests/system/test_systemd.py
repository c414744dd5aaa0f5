"""The unit files, judged by systemd itself (no booted systemd needed)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = "recognizer-agent.service"
DROPINS = ("10-dgpu.conf", "10-jetson.conf")
MAX_EXPOSURE = 2.5

needs_systemd_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def unit_dir(repo_dir: Path) -> Path:
    return repo_dir / "systemd"


def settings(path: Path) -> dict[str, list[str]]:
    """Every assignment of a unit file, in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def lay(unit_dir: Path, target: Path, dropin: str) -> Path:
    """A copy of the unit with one drop-in, started program replaced by one that exists everywhere."""
    target.mkdir(exist_ok=True)
    text = (unit_dir / UNIT).read_text()
    copy = target / UNIT
    copy.write_text(text.replace("/opt/recognizer-agent/current/bin/recognizer-agent", "/bin/true"))
    if dropin:
        (target / f"{UNIT}.d").mkdir()
        shutil.copy(unit_dir / f"{UNIT}.d" / dropin, target / f"{UNIT}.d")
    return copy


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd_analyze
@pytest.mark.parametrize("dropin", ["", *DROPINS])
def test_unit_verifies_without_a_word(unit_dir: Path, tmp_path: Path, dropin: str) -> None:
    result = analyze("verify", str(lay(unit_dir, tmp_path / "units", dropin)))
    ours = [line for line in (result.stdout + result.stderr).splitlines() if "recognizer" in line]
    assert ours == []
    assert result.returncode == 0, result.stderr


@needs_systemd_analyze
@pytest.mark.parametrize("dropin", ["", *DROPINS])
def test_exposure_is_low(unit_dir: Path, tmp_path: Path, dropin: str) -> None:
    root = tmp_path / "root"
    (root / "etc/systemd").mkdir(parents=True)
    lay(unit_dir, root / "etc/systemd/system", dropin)
    result = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={MAX_EXPOSURE * 10:.0f}", f"--root={root}", UNIT
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= MAX_EXPOSURE
    assert result.returncode == 0
    if dropin:
        assert "char-drm" in result.stdout  # the drop-in was merged, not overlooked


def test_a_wrong_configuration_is_not_retried(unit_dir: Path) -> None:
    unit = settings(unit_dir / UNIT)
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["78"]
    assert unit["Type"] == ["notify"]
    assert unit["WatchdogSec"] == ["30"]


def test_the_end_of_a_model_check_for_want_of_memory_is_not_the_end_of_the_service(unit_dir: Path) -> None:
    assert settings(unit_dir / UNIT)["OOMPolicy"] == ["continue"]


def test_nothing_is_reported_to_the_maker_of_the_runtime(unit_dir: Path) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in settings(unit_dir / UNIT)["Environment"]


@pytest.mark.parametrize("dropin", DROPINS)
def test_a_drop_in_opens_devices_and_loosens_nothing_else(unit_dir: Path, dropin: str) -> None:
    allowed = {"SupplementaryGroups", "DeviceAllow", "LimitMEMLOCK"}
    found = settings(unit_dir / f"{UNIT}.d" / dropin)
    loaded = {name for key in ("Wants", "After") for value in found.pop(key, []) for name in value.split()}
    assert all(re.fullmatch(r"modprobe@[a-z_]+\.service", name) for name in loaded)
    assert set(found) <= allowed


def test_drivers_of_cameras_that_come_later_are_there_at_the_start(unit_dir: Path) -> None:
    """systemd.resource-control(5), DeviceAllow=: what /proc/devices does not list then is not allowed later."""
    unit = settings(unit_dir / UNIT)
    assert "char-video4linux rw" in unit["DeviceAllow"]
    for key in ("Wants", "After"):
        assert "modprobe@videodev.service" in " ".join(unit[key]).split()


def test_installed_configuration_is_valid(unit_dir: Path) -> None:
    from agent.config.load import load_config

    config = load_config(
        [unit_dir / "agent.yaml"], env={"CREDENTIALS_DIRECTORY": "/run/credentials/recognizer-agent.service"}
    )
    assert config.state_dir == Path("/var/lib/recognizer")
    assert config.mqtt.password_file == Path("/run/credentials/recognizer-agent.service/mqtt-password")
