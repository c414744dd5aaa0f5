"""The campaign of kills during updates in small, and that it would notice a device that serves what it should not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def campaign(repo: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and figures."""
    command = [sys.executable, "benchmarks/ota_campaign.py", "--json", *arguments]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=3000, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_device_that_dies_in_its_updates_always_has_a_model_and_gets_to_an_end(repo_dir: Path) -> None:
    code, figures = campaign(repo_dir, "--kills", "5", "--seed", "3")
    assert code == 0, figures
    assert figures["kills"] >= 5
    assert figures["committed"] >= 1
    assert figures["transitions"]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_device_that_serves_too_early_is_found_out(repo_dir: Path) -> None:
    code, figures = campaign(repo_dir, "--kills", "12", "--break", "early-link")
    assert code == 1
    assert figures["troubles"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_kills(repo_dir: Path) -> None:
    code, figures = campaign(repo_dir, "--kills", "100")
    assert code == 0, figures
    assert len(figures["transitions"]) >= 14
