"""Power loss under the file sink, on a disk that forgets what was not synced, tears pages and swaps writes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.powerloss_disk import Fate, Mode
from fakes.powerloss_fs import REASON, PowerLossMount

from agent.sinks.lines import LineFile

WRITER = Path(__file__).parent.parent / "fakes" / "line_writer.py"
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


def live(folder: Path, mount: Path, mode: Mode, fate: Fate, seed: int, first: int) -> int:
    """Write until the power goes at a random moment; the first number that was not known to be safe."""
    dice = random.Random(seed)
    path = mount / "events.jsonl"
    with PowerLossMount(folder, mount, mode) as disk:
        command = [sys.executable, str(WRITER), str(path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline())]
            time.sleep(dice.uniform(0, 0.3))
            disk.lose_power(fate, seed, dice.choice(("now", "write", "sync")), dice.randint(1, 9))
            writer.kill()
            told += [int(line) for line in writer.stdout.read().split()]
    return told[-1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["journalled", "strict"])
def test_what_was_safe_is_there_in_order_and_nothing_else_than_whole_lines(tmp_path: Path, mode: Mode) -> None:
    folder, mount = tmp_path / "safe", tmp_path / "mount"
    fates: list[Fate] = ["torn", "some", "drop"]
    number = 1
    for life in range(9):
        number = live(folder, mount, mode, fates[life % 3], life, number)
        file = LineFile(folder / "events.jsonl", max_bytes=1 << 30, keep_files=500)
        file.append([], number)
        file.close()
        files = sorted(folder.glob("events.jsonl.*[0-9]"), key=lambda one: -int(one.suffix[1:]))
        texts = [one.read_bytes() for one in [*files, folder / "events.jsonl"]]
        found = [int(json.loads(line)["sequence"]) for text in texts for line in text.split(b"\n")[:-1]]
        assert all(text.endswith(b"\n") or not text for text in texts)
        assert list(dict.fromkeys(found))[: number - 1] == list(range(1, number)), f"life {life}"
    assert number > 200
