"""Power loss under the record of trust, on a disk that forgets what was not synced, tears pages and swaps writes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.powerloss_disk import Fate, Mode
from fakes.powerloss_fs import REASON, PowerLossMount

from agent.update.trust_record import TrustRecord

REPO = Path(__file__).resolve().parents[2]
WRITER = REPO / "tests" / "fakes" / "trust_writer.py"
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


def live(tmp_path: Path, mode: Mode, fate: Fate, seed: int, first: int) -> int:
    """Keep states until the power goes at a random moment; the last one that was told to be safe."""
    dice = random.Random(seed)
    mount = tmp_path / "mount"
    with PowerLossMount(tmp_path / "safe", mount, mode) as disk:
        command = [sys.executable, str(WRITER), str(mount), str(tmp_path / "workplace"), str(first)]
        environment = {"PYTHONPATH": str(REPO)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline())]
            time.sleep(dice.uniform(0, 0.3))
            disk.lose_power(fate, seed, dice.choice(("now", "write", "sync")), dice.randint(1, 9))
            writer.kill()
            told += [int(line) for line in writer.stdout.read().split()]
    return told[-1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["journalled", "strict"])
def test_what_was_held_for_true_is_never_lost_nor_torn(tmp_path: Path, mode: Mode) -> None:
    fates: list[Fate] = ["torn", "some", "drop"]
    number = 0
    for life in range(9):
        told = live(tmp_path, mode, fates[life % 3], life, number + 1)
        held = TrustRecord(tmp_path / "safe").load()
        number = int(held.files["timestamp.json"])
        assert number in (told, told + 1), f"life {life}"
        assert held.files["targets.json"] == b"x" * 20_000
        assert held.notes == (), f"life {life}"
    assert number > 50
