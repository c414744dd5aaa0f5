"""Memory stays flat while events are buffered without a network, and all of them arrive afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.brokers import MOSQUITTO

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(MOSQUITTO is None, reason="needs the Mosquitto broker")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("events", [30_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_backlog_costs_disk_not_memory(repo_dir: Path, events: int) -> None:
    command = [sys.executable, "benchmarks/backlog.py", "--json", "--events", str(events)]
    done = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, timeout=1800, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert done.returncode == 0, figures
    assert figures["arrived"] == events
    assert figures["base_rss_mb"] > 10
