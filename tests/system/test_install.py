"""install.sh: usage, and a whole life of the service (install, upgrade, failed upgrade, removal) below a scratch root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

UNIT = "recognizer-agent.service"
COPIED = (
    "agent",
    "configs",
    "docs",
    "examples",
    "install.sh",
    "models",
    "ota",
    "pyproject.toml",
    "README.md",
    "requirements",
    "systemd",
)


def run(script: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run([script, *args], capture_output=True, text=True, timeout=580, check=False, env=env)


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["help"], ["service", "--help"]])
def test_help_names_every_command(repo_dir: Path, args: list[str]) -> None:
    result = run(repo_dir / "install.sh", *args)
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("demo", "test", "service", "fleet", "--uninstall", "--purge"))


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "Usage"),
        (["serve"], "unknown command 'serve'"),
        (["service", "--prefix"], "unknown option --prefix"),
        (["service", "--purge"], "--purge goes with --uninstall"),
        (["demo", "--root", "/nowhere"], "--root goes with 'service' and 'fleet'"),
        (["fleet", "--purge"], "--purge goes with --uninstall"),
        (["fleet", "--gpu"], "fleet runs on the CPU"),
        (["fleet", "--prefix"], "fleet: unknown option --prefix"),
        (["service", "--root"], "--root needs a folder"),
        (["demo", "--python", "/no/such/python"], "is not there"),
        (["test", "--gpu"], "test runs on the CPU"),
    ],
)
def test_wrong_use_exits_2_and_says_what_is_wrong(repo_dir: Path, args: list[str], complaint: str) -> None:
    result = run(repo_dir / "install.sh", *args)
    assert result.returncode == 2
    assert complaint in result.stderr


def test_an_old_python_is_refused_by_name(repo_dir: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(version < 3.11)` does on one
    old.chmod(0o755)
    result = run(repo_dir / "install.sh", "demo", "--python", str(old))
    assert result.returncode == 1
    assert "older than 3.11" in result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", ["install.sh", ".ci/run", "requirements/lock.sh"])
def test_shell_scripts_pass_shellcheck(repo_dir: Path, script: str) -> None:
    result = run(Path("/usr/bin/env"), "shellcheck", str(repo_dir / script))
    assert result.returncode == 0, result.stdout


# --- its functions, one by one ----------------------------------------------------------------------------------------


def call(repo_dir: Path, tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """`body` with the functions of install.sh, as if a systemd ran and the checkout and what is installed were below `tmp_path`."""
    functions, _, _ = (repo_dir / "install.sh").read_text().partition("# --- command line")
    (tmp_path / "systemd-runs").mkdir()
    functions = functions.replace("/run/systemd/system", str(tmp_path / "systemd-runs"))
    settings = f"""
    kind=agent program=recognizer-agent account=recognizer unit=recognizer-agent.service
    variant='' root='' scratch='' opt={tmp_path}/opt etc={tmp_path}/etc units={tmp_path}/units HERE={tmp_path}/checkout
    is_jetson() {{ false; }}
    has_nvidia_driver() {{ [ -n "${{gpu:-}}" ]; }}
    """
    script = tmp_path / "script"
    script.write_text(functions.replace("readonly HERE", "") + settings + body)
    for folder in (f"checkout/systemd/{UNIT}.d", "etc", "opt/versions/1", "opt/versions/2"):
        (tmp_path / folder).mkdir(parents=True)
    for dropin in ("10-dgpu.conf", "10-jetson.conf"):
        (tmp_path / "checkout/systemd" / f"{UNIT}.d" / dropin).write_text(dropin)
    return subprocess.run(["bash", script], capture_output=True, text=True, timeout=60, check=False)


UPGRADE = """
systemctl() {
  echo "$*" >> {0}/calls
  if [ "$1" = restart ]; then [ "$(readlink "$opt/current") $(cat "$units/$unit")" = "versions/1 unit of 1" ]; fi
}
journalctl() { :; }
echo "unit of 1" > "$HERE/systemd/$unit"; install_unit; switch_to 1
echo "[Service]" > "$units/$unit.d/override.conf"
echo "unit of 2" > "$HERE/systemd/$unit"; gpu=1
"""


def test_a_version_that_does_not_start_leaves_the_unit_of_the_one_before(repo_dir: Path, tmp_path: Path) -> None:
    body = UPGRADE.replace("{0}", str(tmp_path)) + "install_unit; switch_to 2; start_or_roll_back 2 1"
    result = call(repo_dir, tmp_path, body)
    assert result.returncode == 1
    assert "2 did not start" in result.stderr
    assert "does not start any more" not in result.stderr
    assert (tmp_path / "opt/current").readlink().name == "1"
    assert (tmp_path / "units" / UNIT).read_text() == "unit of 1\n"
    assert {file.name for file in (tmp_path / "units" / f"{UNIT}.d").iterdir()} == {"override.conf"}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [one.split()[0] for one in calls[-3:]] == ["restart", "daemon-reload", "restart"]


def test_an_upgrade_that_is_cut_off_does_not_change_which_unit_is_the_old_one(repo_dir: Path, tmp_path: Path) -> None:
    body = UPGRADE.replace("{0}", str(tmp_path)) + "install_unit; install_unit; restore_unit"
    assert call(repo_dir, tmp_path, body).returncode == 0
    assert (tmp_path / "units" / UNIT).read_text() == "unit of 1\n"


def test_the_check_has_the_variables_that_the_service_will_have(repo_dir: Path, tmp_path: Path) -> None:
    """systemd.exec(5), EnvironmentFile=."""
    wanted = {"A": "one", "TOKEN": "YWJj=", "BOTH": "a b", "SINGLE": '"', "INDENTED": "5", "name": "", "LAST": "x=y"}
    text = (
        'A=one\n# NO=1\n;NO=2\nexport NO=3\nNO\n\nTOKEN=YWJj=\r\nBOTH="a b"  \n'
        "SINGLE='\"'\n  INDENTED = 5\nname=\nLAST=x=y"
    )
    program = tmp_path / "bin/recognizer-agent"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nenv -0 >&2\n")
    program.chmod(0o755)
    body = "cat > $etc/agent.env <<'EOF'\n" + text + "\nEOF\n"
    body += f"truncate -s -1 $etc/agent.env; check_configuration {tmp_path}"
    result = call(repo_dir, tmp_path, body)
    found = dict(one.split("=", 1) for one in result.stderr.split("\0") if one)
    assert {name: found.get(name) for name in [*wanted, "NO"]} == {**wanted, "NO": None}


def test_the_settings_of_a_fleet_server_are_looked_at_as_its_user(repo_dir: Path, tmp_path: Path) -> None:
    """Its tokens and keys are refused to anybody else."""
    body = f"""
    kind=fleet account=recognizer-fleet etc=/etc/recognizer-fleet
    runuser() {{ echo "$*"; }}
    check_configuration {tmp_path}
    """
    called = f"-u recognizer-fleet -- {tmp_path}/bin/recognizer-fleet serve --config /etc/recognizer-fleet/fleet.yaml --check\n"
    assert call(repo_dir, tmp_path, body).stderr == called


def test_an_upgrade_that_is_cut_off_as_it_switches_is_an_upgrade(repo_dir: Path, tmp_path: Path) -> None:
    """The version that `current` names is never removed."""
    body = f"""
    root={tmp_path}/root state={tmp_path}/state
    echo "unit of 1" > "$HERE/systemd/$unit"; install_unit; switch_to 1
    echo "unit of 2" > "$HERE/systemd/$unit"
    echo 'version = "2"' > "$HERE/pyproject.toml"; echo > "$HERE/systemd/agent.yaml"
    build_version() {{ mkdir -p "$1/bin"; }}
    check_configuration() {{ :; }}
    mv() {{ command mv "$@"; if [ "${{@: -1}}" = "$opt/current" ]; then kill -TERM $$; fi; }}
    cmd_service
    """
    result = call(repo_dir, tmp_path, body)
    assert result.returncode == -signal.SIGTERM, result.stderr
    assert (tmp_path / "opt/current").readlink().name.startswith("2-")
    assert (tmp_path / "opt/current/bin").is_dir()
    assert (tmp_path / "units" / UNIT).read_text() == "unit of 2\n"
    assert "not installed" not in result.stderr


@pytest.mark.slow
def test_half_a_pip_of_a_venv_that_was_cut_off_is_made_whole(repo_dir: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True, with_pip=True)
    (pip,) = (tmp_path / "venv/lib").glob("python*/site-packages/pip")
    shutil.rmtree(pip / "_internal/utils")  # its metadata, which Debian packs first, says that it is there
    body = f"""
    force_pip=1 venv={tmp_path}/venv; touch "$HERE/pyproject.toml"
    install_locked() {{ :; }}
    pip_install() {{ "$venv/bin/python" -m pip --version; }}
    sync_checkout_venv demo
    """
    result = call(repo_dir, tmp_path, body)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pip ")


# --- the life of a service --------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(repo_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the sources, so that a build leaves nothing in the repository."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in COPIED:
        source = repo_dir / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "runs"))
        elif source.exists():
            shutil.copy(source, target / name)
    yield target
    shutil.rmtree(tmp_path, ignore_errors=True)  # hundreds of MB


def current(root: Path) -> str:
    return (root / "opt/recognizer-agent/current").readlink().name


def versions(root: Path) -> set[str]:
    return {path.name for path in (root / "opt/recognizer-agent/versions").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_of_a_checkout_that_was_copied_or_moved_runs_its_own_code(checkout: Path, tmp_path: Path) -> None:
    def code_of(place: Path) -> Path:
        result = run(place / "install.sh", "demo", "--cpu", "--help")
        assert result.returncode == 0, result.stderr
        shown = run(place / ".venv/bin/python", "-I", "-c", "import agent; print(agent.__file__)")
        return Path(shown.stdout.strip()).parents[1]

    assert code_of(checkout) == checkout
    copy = shutil.copytree(checkout, tmp_path / "copy", symlinks=True)
    assert code_of(copy) == copy
    assert code_of(copy.rename(tmp_path / "moved")) == tmp_path / "moved"
    assert code_of(checkout) == checkout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="without uv the other tests use pip")
def test_install_works_with_pip_although_uv_is_there(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    result = run(checkout / "install.sh", "service", "--cpu", "--pip", "--root", str(root))
    assert result.returncode == 0, result.stderr
    assert run(root / "opt/recognizer-agent/current/bin/recognizer-agent", "--help").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_install_upgrade_failed_upgrade_and_removal(checkout: Path, tmp_path: Path) -> None:
    root, script, scratch = tmp_path / "root", checkout / "install.sh", tmp_path / "scratch"
    scratch.mkdir()
    service = ["service", "--cpu", "--root", str(root)]
    etc, state, unit = root / "etc/recognizer", root / "var/lib/recognizer", root / "etc/systemd/system"

    result = run(script, *service)
    assert result.returncode == 0, result.stderr
    first = current(root)
    agent = root / "opt/recognizer-agent/current/bin/recognizer-agent"
    assert run(agent, "--help").returncode == 0
    assert (etc / "agent.yaml").read_text() == (checkout / "systemd/agent.yaml").read_text()
    assert (etc / "credentials").stat().st_mode & 0o777 == 0o700
    assert (etc / "credentials/mqtt-password").stat().st_mode & 0o777 == 0o600
    assert (unit / "recognizer-agent.service").exists()
    assert (root / "opt/recognizer-agent/current/share/recognizer-agent/configs/default.yaml").exists()
    assert not list(checkout.glob("build")) + list(checkout.glob("*.egg-info"))

    # An upgrade keeps what the operator and the agent wrote, and lays its own defaults beside it.
    mine = "version: 1\ndevice_id: ${BOX}\nstate_dir: /var/lib/recognizer\n"
    (etc / "agent.env").write_text("# names\nBOX='gate-7'\n")
    (etc / "agent.yaml").write_text(mine)
    (etc / "credentials/mqtt-password").write_text("hunter2\n")
    (state / "events.db").write_bytes(b"stored events")
    (unit / "recognizer-agent.service.d/override.conf").write_text("[Service]\n")
    result = run(script, *service, TMPDIR=str(scratch))
    assert result.returncode == 0, result.stderr
    assert not any(path.is_dir() for path in scratch.iterdir())  # uv leaves a lock file of its own
    second = current(root)
    assert second != first
    assert versions(root) == {first, second}
    assert (etc / "agent.yaml").read_text() == mine
    assert (etc / "agent.yaml.new").read_text() == (checkout / "systemd/agent.yaml").read_text()
    assert (etc / "credentials/mqtt-password").read_text() == "hunter2\n"
    assert (state / "events.db").read_bytes() == b"stored events"

    # A configuration that the new version does not understand leaves the old one in place.
    (etc / "agent.yaml").write_text("version: 1\ndevice_idd: gate-7\n")
    result = run(script, *service)
    assert result.returncode == 78
    assert "agent.yaml:2" in result.stderr
    assert f"{second} stays installed. Mend the lines above and run again.\n" in result.stderr
    assert current(root) == second
    assert versions(root) == {first, second}

    # So does a build that fails.
    (checkout / "pyproject.toml").write_text('[project]\nversion = "9"\n[build-system\n')
    assert run(script, *service).returncode != 0
    assert current(root) == second
    assert versions(root) == {first, second}

    result = run(script, *service, "--uninstall")
    assert result.returncode == 0, result.stderr
    assert not (root / "opt/recognizer-agent").exists()
    assert not (unit / "recognizer-agent.service").exists()
    assert (unit / "recognizer-agent.service.d/override.conf").exists()
    assert (etc / "agent.yaml").exists()
    assert (state / "events.db").exists()

    assert run(script, *service, "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if "recognizer" in path.name] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_life_of_a_fleet_server(checkout: Path, tmp_path: Path) -> None:
    root, script = tmp_path / "root", checkout / "install.sh"
    fleet = ["fleet", "--root", str(root)]
    opt, etc, state = (root / folder / "recognizer-fleet" for folder in ("opt", "etc", "var/lib"))
    unit = root / "etc/systemd/system/recognizer-fleet.service"

    result = run(script, *fleet)
    assert result.returncode == 0, result.stderr
    first = (opt / "current").readlink().name
    assert run(opt / "current/bin/recognizer-fleet", "serve", "--help").returncode == 0
    assert (root / "usr/local/bin/recognizer-fleet").is_symlink()
    assert "ExecStart=/opt/recognizer-fleet/current/bin/recognizer-fleet serve" in unit.read_text()
    assert (etc / "fleet.yaml").read_text() == (checkout / "systemd/fleet.yaml").read_text()
    assert not (root / "opt/recognizer-agent").exists()  # the agent is another matter
    assert not (root / "etc/recognizer").exists()

    (etc / "fleet.yaml").write_text("data: ${FLEET_DATA}\n")  # an upgrade keeps what is there
    (etc / "fleet.env").write_text("FLEET_DATA=/var/lib/recognizer-fleet\n")
    (state / "fleet.db").write_bytes(b"devices")
    assert run(script, *fleet).returncode == 0
    second = (opt / "current").readlink().name
    assert second != first
    assert (etc / "fleet.yaml.new").exists()
    assert (state / "fleet.db").read_bytes() == b"devices"

    (etc / "fleet.yaml").write_text("data: /var/lib/recognizer-fleet\nprot: 80\n")  # settings that it does not know
    result = run(script, *fleet)
    assert result.returncode == 78
    assert "fleet.yaml:2" in result.stderr
    assert (opt / "current").readlink().name == second

    assert run(script, *fleet, "--uninstall").returncode == 0
    assert not opt.exists()
    assert not unit.exists()
    assert (etc / "fleet.yaml").exists()
    assert (state / "fleet.db").exists()
    assert run(script, *fleet, "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if "recognizer" in path.name] == []
