"""What a start does not load: it takes time, and memory for as long as the process lives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def loaded(*arguments: str, code: int = 0) -> set[str]:
    """The modules that a Python with these arguments imports until it ends with `code`."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


def test_the_fleet_server_loads_nothing_that_only_the_agent_needs() -> None:
    found = loaded("-c", "import ota.server.run, agent.commands.loop")
    assert "agent.commands.loop" in found
    assert {"agent.app", "cv2", "av", "onnxruntime"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        (("agent", "run"), {"agent.app", "aiohttp", "cv2", "av"}),
        (("ota.cli", "serve"), {"agent.app", "aiohttp", "sqlalchemy", "tuf"}),
    ],
    ids=["agent", "fleet server"],
)
def test_what_is_wrong_in_a_file_is_said_before_the_rest_is_loaded(
    tmp_path: Path, command: tuple[str, str], unwanted: set[str]
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("nonsense: 1\n")
    found = loaded("-m", *command, "--config", str(file), code=78)
    assert "pydantic" in found
    assert unwanted.isdisjoint(found)
