"""A fleet from its first key to its fifth bad model and its second thief, by the commands of docs/ota.md: `benchmarks/fleet_story.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.brokers import MOSQUITTO

REPO = Path(__file__).resolve().parent.parent.parent
GAP_BAR_MS = 200.0
DEVICES = ["gate-1", "gate-2", "gate-3"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto")
def test_good_models_come_to_all_and_each_bad_one_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/fleet_story.py", "--folder", str(tmp_path / "story"), "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=1180, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    verdict = json.loads(done.stdout)
    assert verdict["reasons"].pop("slower once in use") in {"slower", "unhealthy"}
    assert verdict["reasons"] == {
        "slower": "slower",
        "worse": "worse",
        "crashing": "crash",
        "crashing on live pictures": "restart",
        "put on the list": "trust",
        "not signed": "trust",
    }
    assert verdict["refused_by"] == DEVICES  # the others are offered to the canary alone
    assert verdict["states"].pop("good") == verdict["states"].pop("good again") == "finished"
    assert set(verdict["states"].values()) <= {"aborted", "rolled_back", "paused"}
    assert sorted(verdict["gaps_ms"]) == DEVICES
    for device, gap_ms in verdict["gaps_ms"].items():  # two frames, where the machine gives fewer than ten a second
        assert gap_ms <= max(GAP_BAR_MS, 2 * verdict["usual_gaps_ms"][device])
    assert set(verdict["way_back"]) == {"gap_ms", "usual_gap_ms", "back_gap_ms"}
    assert sorted(verdict["deaths"].values()) == [0, 0, 2]
