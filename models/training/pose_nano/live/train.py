"""Trains `pose-nano` for so many minutes on pictures that others render meanwhile.

    python -m pose_nano.live.train --run runs/live --start weights.pt --shards /dev/shm/shards --minutes 10 [--plan live.toml]

Shards that appear in the folder `--shards` under the name of a section of the plan (`plays-4711` is of `plays`) are read into
the GPU's memory and deleted. Views are random, so a run is not repeated exactly, and it is not resumed: what it learnt,
RUN/average.pt, is what another begins with. The rate rises over the first `WARM_UP_S`, and falls to nothing over the last
`--decay` of the time.
"""

from __future__ import annotations

import argparse
import queue
import shutil
import signal
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose_nano.augment import Recipe
from pose_nano.live.ahead import GraphTrainer, ahead
from pose_nano.live.pool import Pictures, Pool, read_pictures
from pose_nano.live.targets import draw
from pose_nano.live.views import view
from pose_nano.losses import Batch
from pose_nano.stream import recipe_of
from pose_nano.train import Log, Trainer, save_whole

PLAN = Path(__file__).with_name("plan.toml")
WARM_UP_S = 8.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Mix:
    """What some of the batches are made of. share: of the batches; batch: pictures; sources: sections of the pool and how often
    each is drawn from."""

    share: float
    batch: int
    sources: Mapping[str, float]
    recipe: Recipe


def read_plan(file: Path) -> tuple[dict[str, int], list[Mix]]:
    """Capacity of each section, and the mixes. Raises ValueError with the file's name and what is wrong."""
    try:
        content = tomllib.loads(file.read_text())
        capacity = {name: int(count) for name, count in content["pool"].items()}
        mixes = [_mix(table, capacity) for table in content["mix"]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; wanted: [pool] and tables [[mix]] with share, batch, sources") from error
    return capacity, mixes


def _mix(table: dict[str, Any], capacity: Mapping[str, int]) -> Mix:
    share, batch, sources = float(table.pop("share")), int(table.pop("batch")), dict(table.pop("sources"))
    if unknown := sources.keys() - capacity.keys():
        raise ValueError(f"sources that [pool] does not have: {', '.join(sorted(unknown))}")
    return Mix(share, batch, sources, recipe_of(table))


@dataclass(slots=True)
class Clock:
    """Rates by the time since the first step. minutes; decay: share of them."""

    rate: float
    minutes: float
    decay: float
    started: float = field(default_factory=time.monotonic)

    def passed(self) -> float:
        """Share of the time."""
        return (time.monotonic() - self.started) / (self.minutes * 60)

    def at(self, seen: int) -> float:
        passed = self.passed()
        left = (1 - passed) / self.decay if self.decay else 1.0
        return self.rate * min(1.0, passed * self.minutes * 60 / WARM_UP_S + 0.01) * max(0.0, min(1.0, left))


class Arrivals:
    """Shards as they appear, read ahead by a thread of their own."""

    def __init__(self, folder: Path, sections: Sequence[str], *, pinned: bool) -> None:
        self._folder, self._sections, self._pinned = folder, sections, pinned
        self._ready: queue.Queue[tuple[str, Pictures]] = queue.Queue(maxsize=2)
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, timeout_s: float = 0.0) -> tuple[str, Pictures] | None:
        """The next one's section and pictures, if there is one."""
        try:
            return self._ready.get(block=timeout_s > 0, timeout=timeout_s or None)
        except queue.Empty:
            return None

    def _read(self) -> None:
        while True:
            for people in sorted(self._folder.glob("*/people.npz")):
                section = people.parent.name.partition("-")[0]
                if section not in self._sections or people.parent.suffix == ".partial":
                    continue
                pictures = read_pictures(people.parent)
                shutil.rmtree(people.parent)
                if self._pinned:
                    pictures = Pictures(pictures.images.pin_memory(), pictures.sizes, pictures.people)
                self._ready.put((section, pictures))
            time.sleep(_POLL_S)


def train(arguments: argparse.Namespace) -> None:
    """Until the time is up or the process is asked to end: then what was learnt is written."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(arguments.seed)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    capacity, mixes = read_plan(arguments.plan)
    pool = Pool(capacity, device)
    arrivals = Arrivals(arguments.shards, list(capacity), pinned=device.type == "cuda")
    while sum(pool.taken_in().values()) < arguments.least:
        if arrival := arrivals.take(1.0):
            pool.add(*arrival)
    clock = Clock(arguments.rate, arguments.minutes, arguments.decay)
    gpu = device.type == "cuda"
    trainer = (GraphTrainer if gpu and not arguments.no_graphs else Trainer)(clock, device, bfloat16=gpu)
    trainer.start_from(arguments.start)
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: setattr(trainer, "ending", True))
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    log, logged = Log(run / "log.csv"), 0
    shares = np.array([mix.share for mix in mixes]) / sum(mix.share for mix in mixes)
    before_decay = True

    @torch.no_grad()
    def make() -> tuple[Tensor, Batch]:
        if arrival := arrivals.take():
            pool.add(*arrival)
        mix = mixes[rng.choice(len(mixes), p=shares)]
        image, crowd = view(pool, pool.draw(mix.sources, mix.batch, generator), mix.recipe, generator)
        return image, draw(crowd, *mix.recipe.canvas)

    for image, batch in ahead(make, device):
        log.add(trainer.step(image, batch))
        if trainer.steps % arguments.report == 0:
            log.write(trainer.seen, (trainer.seen - logged) // arguments.report, clock.at(trainer.seen))
            logged = trainer.seen
            print(f"{clock.passed():.1%} {pool.taken_in()}", flush=True)
        if before_decay and clock.passed() > 1 - arguments.decay:
            before_decay = False
            save_average(trainer, run / "before-decay.pt")
        if clock.passed() >= 1 or trainer.ending:
            break
    save_average(trainer, run / "average.pt")
    print(f"{trainer.seen} views in {trainer.steps} steps, pictures: {pool.taken_in()}", flush=True)


def save_average(trainer: Trainer, file: Path) -> None:
    """What `Trainer.start_from` and `export.load_detector` read."""
    save_whole({"average": trainer.average.state_dict(), "seen": trainer.seen}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="weights to begin with")
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder in which shards appear; what is read is deleted"
    )
    parser.add_argument("--plan", type=Path, default=PLAN, help="TOML; default: how the shipped weights were made")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--decay", type=float, default=0.45, help="share of the time over which the rate falls to nothing"
    )
    parser.add_argument("--least", type=int, default=2000, help="pictures to wait for before the first step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-graphs", action="store_true", help="start each kernel of a step anew: half as fast")
    parser.add_argument("--report", type=int, default=100, help="steps")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
