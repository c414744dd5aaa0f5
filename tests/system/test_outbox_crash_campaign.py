"""The crash campaign in small, and that it would notice an agent that loses, swaps or changes events."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.brokers import MOSQUITTO

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(MOSQUITTO is None, reason="needs the Mosquitto broker")]


def campaign(repo: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and figures."""
    command = [sys.executable, "benchmarks/crash_campaign.py", "--json", *arguments]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=1800, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_the_agent_is_killed_and_the_broker_restarts(repo_dir: Path) -> None:
    code, figures = campaign(repo_dir, "--kills", "5", "--seed", "3")
    assert code == 0, figures
    assert figures["kills"] == 5
    assert figures["broker_restarts"] >= 1
    assert figures["delivered"] >= figures["committed"] > 500
    assert figures["states"] > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "shows_in"),
    [
        ("delete-before-ack", "lost"),
        pytest.param("claim-early", "lost", marks=pytest.mark.slow),
        pytest.param("reorder", "disordered", marks=pytest.mark.slow),
        pytest.param("change-duplicates", "conflicts", marks=pytest.mark.slow),
    ],
)
def test_a_faulty_agent_is_found_out(repo_dir: Path, fault: str, shows_in: str) -> None:
    code, figures = campaign(repo_dir, "--kills", "2", "--silence-s", "3", "--break", fault)
    assert code == 1
    assert figures[shows_in] > 0
    assert not figures["troubles"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(repo_dir: Path) -> None:
    code, figures = campaign(repo_dir, "--kills", "200")
    assert code == 0, figures
