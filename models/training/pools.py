"""What a network is trained on: real clips, synthetic falls, simulated scenes, each with its share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from clips import Samples
from clipset import Clips
from fit import Pool
from numpy.typing import NDArray

from agent.action.windows import WITHOUT_CHANGE

REAL_DOUBT = 0.05
"""Label smoothing (Szegedy et al. 2016) of windows of real clips."""


def real_rows(
    service: str, samples: Samples, clips: Clips, use: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The windows of the clips in `use` and their weights, 1 a clip in the mean: each label half of the weight, within it
    each clip the same."""
    rows = np.flatnonzero(use[samples.clip] & (samples.label >= 0))
    label, clip = samples.label[rows], samples.clip[rows]
    pair = clip.astype(np.int64) * 2 + label
    _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
    weight = 1 / count[inverse]
    clip_count = len(np.unique(clip))
    if service == "fall":  # the fight data set's clips are many: together half of the negatives
        other = np.char.startswith(clips.group[clip], "fight:")
        weight[other] *= weight[(label == 0) & ~other].sum() / max(weight[other].sum(), 1e-9)
    for value in (0, 1):
        weight[label == value] *= clip_count / 2 / max(weight[label == value].sum(), 1e-9)
    return rows, weight


def real_pool(service: str, samples: Samples, clips: Clips, use: NDArray[np.bool_]) -> Pool:
    """See `real_rows`."""
    rows, weight = real_rows(service, samples, clips, use)
    return Pool(samples.tensor[rows], samples.label[rows], weight, np.full(len(rows), REAL_DOUBT))


def synthetic_pool(file: Path) -> Pool:
    """The windows of make_synthetic.py, both labels alike."""
    with np.load(file) as arrays:
        tensor, label = arrays["tensor"], arrays["label"]
    return Pool(tensor, label, len(label) / 2 / np.bincount(label)[label], np.zeros(len(label)))


def seeds_of(files: Sequence[Path]) -> set[int]:
    """The scenes that files of simulated.py were made from."""
    seeds: set[int] = set()
    for file in files:
        with np.load(file) as arrays:
            seeds |= set(arrays["seed"].tolist())
    return seeds


def simulated_pool(files: Sequence[Path], service: str, most: int = 0, *, channels: int = WITHOUT_CHANGE) -> Pool:
    """The windows of files of simulated.py for `service` that are clearly one or the other; both labels alike, and among the
    negatives each scenario. most: windows of each label at the most, drawn at random; 0 = all. channels: the first so many."""
    parts: list[tuple[NDArray[np.float16], NDArray[np.int8], NDArray[np.str_]]] = []
    for file in files:
        with np.load(file) as arrays:
            rows = np.flatnonzero((arrays["service"] == service) & (arrays["label"] >= 0))
            parts.append((arrays["tensor"][rows][..., :channels], arrays["label"][rows], arrays["scenario"][rows]))
    tensor, label, scenario = (np.concatenate(column) for column in zip(*parts, strict=True))
    if most:
        rng = np.random.default_rng(0)
        kept = np.concatenate([rng.permutation(np.flatnonzero(label == value))[:most] for value in (0, 1)])
        tensor, label, scenario = tensor[kept], label[kept], scenario[kept]
    kind = np.where(label == 1, "the action", scenario)
    _, inverse, count = np.unique(kind, return_inverse=True, return_counts=True)
    weight = 1 / count[inverse]
    for value in (0, 1):
        weight[label == value] *= len(label) / 2 / max(weight[label == value].sum(), 1e-9)
    return Pool(tensor, label, weight, np.zeros(len(label)))


def mixed(pools: Sequence[tuple[Pool, float]]) -> Pool:
    """One pool; the weights of each are scaled to its share of what the first one weighs in all."""
    first, first_share = pools[0]
    total = first.weight.sum() / first_share
    return Pool(
        np.concatenate([pool.tensor for pool, _ in pools]),
        np.concatenate([pool.label for pool, _ in pools]),
        np.concatenate([pool.weight * (share * total / pool.weight.sum()) for pool, share in pools]),
        np.concatenate([pool.doubt for pool, _ in pools]),
    )


def with_nobody(pool: Pool) -> Pool:
    """And an empty window, which is nothing: a row of zeros that is drawn now and then."""
    return Pool(
        np.concatenate((pool.tensor, np.zeros_like(pool.tensor[:1]))),
        np.append(pool.label, np.int8(0)),
        np.append(pool.weight, 0.01 * pool.weight.sum()),
        np.append(pool.doubt, 0.0),
    )
