"""Trains `pose-nano`; goes on where a stopped run was.

    python -m pose_nano.train --run runs/pose-nano --mixes mixes.toml --shards shards \
        --batch 24 --finish-at 60000 [--decay 10000] [--bfloat16] [--start weights.pt]

RUN/last.pt holds everything: weights, their average, optimiser, how many pictures were seen (data order follows from it).
The rate is constant after a warm-up and falls to nothing over the last `--decay` pictures before `--finish-at`
(warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395), so a run that is to go on later is kept without decay.
RUN/log.csv gets a row per `--report` steps. A GPU is used when there is one; `--bfloat16` more than doubles the speed of CPUs that
multiply in it (`avx512_bf16` or `amx_bf16` among the flags of /proc/cpuinfo) and slows others down. Several cores work best as
several processes that share each batch: `torchrun --nproc-per-node 2 -m -- pose_nano.train ... --threads 1`
(without the `--` torchrun takes `--run` for an option of its own).
"""

from __future__ import annotations

import argparse
import copy
import csv
import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn

from pose_nano.losses import WEIGHTS, Batch, losses, total
from pose_nano.network import PoseNano, Residual
from pose_nano.optimiser import optimiser_for
from pose_nano.stream import Views, batches, read_mixes

MIXES = Path(__file__).with_name("mixes.toml")
WARM_UP = 6_000
"""Pictures until the rate is full."""
AVERAGE = 0.998
"""Per step, of the weights' moving average, which is what ships."""


class Rates(Protocol):
    """The rate of each step."""

    rate: float

    def at(self, seen: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Rates. finish_at, decay: pictures."""

    rate: float
    finish_at: int
    decay: int

    def at(self, seen: int) -> float:
        """The rate after `seen` pictures."""
        left = (self.finish_at - seen) / self.decay if self.decay else 1.0
        return self.rate * min(1.0, (seen + 1) / WARM_UP) * max(0.0, min(1.0, left))


class Trainer:
    """Network, average, optimiser and count; everything that a checkpoint holds."""

    def __init__(self, plan: Rates, device: torch.device, *, bfloat16: bool, processes: int = 1) -> None:
        self.device, self.plan, self.bfloat16, self.processes = device, plan, bfloat16, processes
        self.network = PoseNano().to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self.optimiser = optimiser_for(self.network, plan.rate)
        self.rate = torch.zeros((), device=device)
        self.seen = self.steps = 0
        self.ending = False

    def step(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """One step on one batch, or this process's part of it; the parts of the loss and `total`: scalars, where they were made."""
        self.rate.fill_(self.plan.at(self.seen))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        batch = Batch(**{f.name: getattr(batch, f.name).to(self.device) for f in fields(Batch)})
        parts = self.learn(image.to(self.device), batch)
        self.seen += len(image) * self.processes
        self.steps += 1
        self._update_average()
        return parts

    def learn(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What of a step happens on the device. On a GPU nothing of it is waited for, so a CUDA graph may hold it."""
        self.network.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            maps = self.network(image)
        parts = losses(maps, batch)
        loss = total(parts)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.processes > 1:
            self._agree()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        return {name: value.detach() for name, value in parts.items()} | {"total": loss.detach()}

    def _agree(self) -> None:
        """The mean of all processes' gradients, and the end as soon as one of them is asked to end."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.full((1,), float(self.ending), device=self.device)])
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape) / self.processes)
        self.ending = bool(flat[-1] > 0)

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        pairs = list(zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True))
        means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(means, values, 1 - keep)  # one call: they are many and small
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)

    def save(self, file: Path) -> None:
        """Write everything, whole or not at all."""
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seen": self.seen,
            "steps": self.steps,
        }
        save_whole(content, file)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint of `save`."""
        content: dict[str, Any] = torch.load(file, map_location=self.device, weights_only=True)
        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.seen, self.steps = content["seen"], content["steps"]

    def start_from(self, file: Path) -> None:
        """Begin with the averaged weights of another run, or those that `export.py --weights` kept; the optimiser starts anew.

        The run may have been of a smaller network: new residual blocks begin as nothing. Raises ValueError for any other difference.
        """
        weights = torch.load(file, map_location=self.device, weights_only=True)["average"]
        blocks = {name for name, module in self.network.named_modules() if isinstance(module, Residual)}
        missing, unknown = self.network.load_state_dict(weights, strict=False)
        odd = unknown + [name for name in missing if not any(name.startswith(f"{block}.") for block in blocks)]
        if odd:
            raise ValueError(f"{file}: not weights of this network or of a smaller one: {', '.join(odd[:3])} ...")
        self.average.load_state_dict(self.network.state_dict())


def save_whole(content: dict[str, Any], file: Path) -> None:
    """Write it, whole or not at all."""
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)


class Log:
    """Means of the losses since the last row, as a table on disk."""

    def __init__(self, file: Path) -> None:
        self._file, self._count, self._since = file, 0, time.time()
        self._sums: dict[str, float | Tensor] = dict.fromkeys((*WEIGHTS, "total"), 0.0)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Count one step; nothing waits for the device before `write`."""
        self._sums = {name: value + parts[name] for name, value in self._sums.items()}
        self._count += 1

    def write(self, seen: int, size: int, rate: float) -> None:
        """Add a row and start anew."""
        means = {name: round(float(value) / self._count, 4) for name, value in self._sums.items()}
        speed = self._count * size / (time.time() - self._since)
        row = {"seen": seen, **means, "rate": f"{rate:.2e}", "per_second": round(speed, 1)}
        fresh = not self._file.exists()
        with self._file.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
        self._sums, self._count, self._since = dict.fromkeys(self._sums, 0.0), 0, time.time()


def train(arguments: argparse.Namespace) -> None:
    """Until `finish_at` pictures were seen or the process is asked to end (SIGTERM, SIGINT): then a checkpoint is written."""
    number, processes = _join()
    if arguments.batch % processes:
        raise SystemExit(f"--batch {arguments.batch} is not a multiple of the {processes} processes")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    plan = Plan(arguments.rate, arguments.finish_at, arguments.decay)
    trainer = Trainer(plan, device, bfloat16=arguments.bfloat16 or device.type == "cuda", processes=processes)
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: setattr(trainer, "ending", True))
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    last = run / "last.pt"
    if last.exists():
        trainer.load(last)
        unused = f"; --start {arguments.start} is not used" if arguments.start else ""
        print(f"going on after {trainer.seen} pictures{unused}", flush=True)
    elif arguments.start:
        trainer.start_from(arguments.start)
    views = Views(read_mixes(arguments.mixes, arguments.shards), arguments.seed, arguments.batch)
    log, saved = Log(run / "log.csv"), time.monotonic()
    stream = batches(
        views, trainer.seen, workers=arguments.workers, core=arguments.worker_core, part=(number, processes)
    )
    for image, batch in stream:
        log.add(trainer.step(image, batch))
        first, done = number == 0, trainer.seen >= arguments.finish_at or trainer.ending
        if first and trainer.steps % arguments.report == 0:
            log.write(trainer.seen, arguments.batch, trainer.plan.at(trainer.seen))
        if first and (done or time.monotonic() - saved > arguments.save_s):
            trainer.save(last)
            saved = time.monotonic()
        if done:
            break
    if processes > 1:
        torch.distributed.destroy_process_group()


def _join() -> tuple[int, int]:
    """This process's number among those that `torchrun` started, and their count."""
    if not torch.distributed.is_torchelastic_launched():
        return 0, 1
    torch.distributed.init_process_group("gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--mixes", type=Path, default=MIXES, help="TOML; default: how the shipped weights were made")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the prepared pictures")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--finish-at", type=int, required=True)
    parser.add_argument("--decay", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker-core", type=int)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16 (a GPU always does)")
    parser.add_argument("--start", type=Path, help="checkpoint whose averaged weights a new run begins with")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--report", type=int, default=50, help="steps")
    parser.add_argument("--save-s", type=float, default=120.0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train(arguments)


if __name__ == "__main__":
    main()
