"""A fleet from its first key to its fourth bad model, by the commands of docs/ota.md: `benchmarks/fleet_story.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.brokers import MOSQUITTO

REPO = Path(__file__).resolve().parent.parent.parent
GAP_BAR_MS = 200.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto")
def test_a_good_model_comes_to_all_and_each_bad_one_stops_at_the_canary(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/fleet_story.py", "--folder", str(tmp_path / "story"), "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    verdict = json.loads(done.stdout)
    assert verdict["reasons"] == {
        "slower": "slower",
        "worse": "worse",
        "crashing": "crash",
        "crashing on live pictures": "restart",
        "not signed": "trust",
    }
    assert verdict["states"].pop("good") == "finished"
    assert set(verdict["states"].values()) <= {"aborted", "rolled_back", "paused"}
    assert sorted(verdict["gaps_ms"]) == ["gate-1", "gate-2", "gate-3"]
    for device, gap_ms in verdict["gaps_ms"].items():  # two frames, where the machine gives fewer than ten a second
        assert gap_ms <= max(GAP_BAR_MS, 2 * verdict["usual_gaps_ms"][device])
    assert sorted(verdict["deaths"].values()) == [0, 0, 2]
