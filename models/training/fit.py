"""Training of one network: weighted sampling, augmentation on the fly, moving average of the weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from augment import augment
from motion import MotionStatistics
from network import Mixture, SlimSTGCN
from numpy.typing import NDArray
from recipes import Recipe
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Windows to draw from. tensor: (N, M, T, V, 3) float16; label: (N,); weight: (N,) relative chance to be drawn; doubt: (N,)
    smoothing of the label, 0-1: what a clip is called need not hold for each of its windows, the simulation's truth does."""

    tensor: NDArray[np.float16]
    label: NDArray[np.int8]
    weight: NDArray[np.float64]
    doubt: NDArray[np.float64]


def fit(
    recipe: Recipe,
    pool: Pool,
    seed: int,
    start: SlimSTGCN | None = None,
    note: Callable[[str], None] = print,
    *,
    change: Callable[[SlimSTGCN], None] = lambda _: None,
    disturb: Callable[[Tensor, torch.Generator], Tensor] = augment,
) -> SlimSTGCN:
    """The trained network (its weights averaged over the last steps), in evaluation mode.

    start: weights to begin with; change: what is done to the network before; disturb: the augmentation of each batch.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    network = SlimSTGCN(width=recipe.width, drop=recipe.drop, wide=recipe.wide)
    change(network)
    if start is not None:
        network.load_state_dict(start.state_dict())
    average = copy.deepcopy(network).eval()
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    steps = recipe.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.15)
    chance = pool.weight / pool.weight.sum()
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        rows = rng.choice(len(chance), recipe.batch, p=chance)
        window = disturb(torch.from_numpy(pool.tensor[rows].astype(np.float32)), generator)
        network.train()
        loss = nn.functional.cross_entropy(network(window), _smoothed(pool.label[rows], pool.doubt[rows]))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        _move_average(average, network, min(recipe.ema, (step + 1) / (step + 10)))
        total += float(loss.detach())
        if (step + 1) % 60 == 0:
            note(
                f"    step {step + 1}/{steps} loss {total / 60:.3f} {(time.monotonic() - started) / (step + 1):.2f} s/step"
            )
            total = 0.0
    return average


def _smoothed(label: NDArray[np.int8], doubt: NDArray[np.float64]) -> Tensor:
    """(N, 2) float32 target probabilities of the rest and the action."""
    action = label * (1 - doubt) + doubt / 2
    return torch.from_numpy(np.stack((1 - action, action), axis=1).astype(np.float32))


def margins(model: Mixture, tensor: NDArray[np.float16], batch: int = 64) -> NDArray[np.float64]:
    """(N,) logit of the action minus logit of the rest."""
    return in_batches(model.margin, tensor, batch)


def statistics(tensor: NDArray[np.float16], batch: int = 64) -> NDArray[np.float64]:
    """(N, F): what a forest is grown on."""
    return in_batches(MotionStatistics(), tensor, batch)


def augmented(tensor: NDArray[np.float16], seed: int, batch: int = 64) -> NDArray[np.float16]:
    """One augmented copy of every window."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        augment(torch.from_numpy(tensor[start : start + batch].astype(np.float32)), generator).numpy()
        for start in range(0, len(tensor), batch)
    ]
    return np.concatenate(parts).astype(np.float16)


def in_batches(
    function: Callable[[Tensor], Tensor], tensor: NDArray[np.floating], batch: int = 64
) -> NDArray[np.float64]:
    """`function` of every row, which it gets as float32."""
    with torch.inference_mode():
        parts = [
            function(torch.from_numpy(tensor[start : start + batch].astype(np.float32))).double().numpy()
            for start in range(0, len(tensor), batch)
        ]
    return np.concatenate(parts) if parts else np.zeros(0)


@torch.no_grad()
def _move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mine, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(new, 1 - decay)
        else:
            mine.copy_(new)
