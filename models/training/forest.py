"""Extremely randomised trees (Geurts, Ernst and Wehenkel 2006, "Extremely randomized trees", Machine Learning 63) as tensors.

With a hundred clips of twenty cameras, trees over `motion.MotionStatistics` err elsewhere than the graph network does, so
the two together are better than either. Growing them is NumPy; asking them is a few gathers, part of the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
MAX_DEPTH = 10
_CLIP = 0.02  # probabilities of the forest stay inside (_CLIP, 1 - _CLIP): a mean of leaves knows no certainty


@dataclass(slots=True)
class _Tree:
    """Nodes in order of making; child 0 means a leaf (nothing leads back to the root)."""

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]

    def add(self, value: float) -> int:
        for column, start in ((self.feature, 0), (self.threshold, 0.0), (self.left, 0), (self.right, 0)):
            column.append(start)  # type: ignore[arg-type]  # a zero of the column's own type
        self.value.append(value)
        return len(self.value) - 1


class Forest(nn.Module):
    """(B, F) features -> (B,) probability of the action, the mean over trees."""

    feature: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor

    def __init__(self, trees: int = 0, nodes: int = 0) -> None:
        """Empty, to be filled by `grow` or by a state dict of `trees` trees of up to `nodes` nodes."""
        super().__init__()
        self.register_buffer("feature", torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, nodes))
        self.register_buffer("child", torch.zeros(trees, nodes, 2, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(trees, nodes))

    @classmethod
    def loaded(cls, state: Mapping[str, Tensor]) -> Forest:
        """From a state dict."""
        forest = cls(*state["value"].shape)
        forest.load_state_dict(state)
        return forest

    def forward(self, features: Tensor) -> Tensor:
        trees, nodes = self.feature.shape
        base = torch.arange(trees)[None] * nodes
        at = base.expand(features.shape[0], trees)
        feature, threshold = self.feature.long().reshape(-1), self.threshold.reshape(-1)
        below = (self.child[..., 0].long() + base.T).reshape(-1)
        above = (self.child[..., 1].long() + base.T).reshape(-1)
        for _ in range(MAX_DEPTH):
            right = torch.gather(features, 1, feature[at]) > threshold[at]
            following = torch.where(right, above[at], below[at])
            at = torch.where(following == base, at, following)
        return self.value.reshape(-1)[at].mean(1)

    def margin(self, features: Tensor) -> Tensor:
        """(B,) log-odds."""
        p = self.forward(features).clamp(_CLIP, 1 - _CLIP)
        return torch.log(p) - torch.log(1 - p)


def grow(
    features: Array, label: NDArray[np.integer], weight: Array, *, trees: int, leaf: float, share: float, seed: int
) -> Forest:
    """A forest on (N, F) features, (N,) labels 0 or 1 and weights.

    leaf: the least weight of a leaf; share: of the features that are tried at a node.
    """
    rng = np.random.default_rng(seed)
    grown = [_grow_tree(features, label.astype(np.float64), weight, rng, leaf=leaf, share=share) for _ in range(trees)]
    nodes = max(len(tree.value) for tree in grown)
    forest = Forest(trees, nodes)
    for number, tree in enumerate(grown):
        count = len(tree.value)
        forest.feature[number, :count] = torch.tensor(tree.feature)
        forest.threshold[number, :count] = torch.tensor(tree.threshold)
        forest.child[number, :count] = torch.tensor([tree.left, tree.right]).T
        forest.value[number, :count] = torch.tensor(tree.value)
    return forest


def _grow_tree(
    features: Array, label: Array, weight: Array, rng: np.random.Generator, *, leaf: float, share: float
) -> _Tree:
    tree = _Tree([], [], [], [], [])
    everybody = np.arange(len(label))
    waiting = [(tree.add(float(np.average(label, weights=weight))), everybody, 0)]
    while waiting:
        node, rows, depth = waiting.pop()
        found = None
        if depth < MAX_DEPTH:
            found = _split(features[rows], label[rows], weight[rows], rng, leaf=leaf, share=share)
        if found is None:
            continue
        tree.feature[node], tree.threshold[node] = found
        right = features[rows, found[0]] > found[1]
        for side, part in ((tree.left, rows[~right]), (tree.right, rows[right])):
            side[node] = tree.add(float(np.average(label[part], weights=weight[part])))
            waiting.append((side[node], part, depth + 1))
    return tree


def _split(
    features: Array, label: Array, weight: Array, rng: np.random.Generator, *, leaf: float, share: float
) -> tuple[int, float] | None:
    """(feature, threshold) of the best of some random cuts by Gini impurity; None where nothing is to be gained."""
    positive = label @ weight
    total = weight.sum()
    if total < 2 * leaf or min(positive, total - positive) < 1e-9:
        return None
    columns = rng.choice(features.shape[1], max(1, round(share * features.shape[1])), replace=False)
    values = features[:, columns]
    low, high = values.min(axis=0), values.max(axis=0)
    # float32 as the graph compares, so that both send a row the same way
    cuts = (low + rng.random(len(columns)) * (high - low)).astype(np.float32)
    right = (values > cuts).astype(np.float64)
    weight_right, positive_right = weight @ right, (weight * label) @ right
    weight_left, positive_left = total - weight_right, positive - positive_right
    fit = (weight_right >= leaf) & (weight_left >= leaf) & (high > low)
    if not fit.any():
        return None
    gain = np.full(len(columns), -np.inf)
    gain[fit] = positive_right[fit] ** 2 / weight_right[fit] + positive_left[fit] ** 2 / weight_left[fit]
    gain[fit] += (weight_right - positive_right)[fit] ** 2 / weight_right[fit]
    gain[fit] += (weight_left - positive_left)[fit] ** 2 / weight_left[fit]
    best = int(np.argmax(gain))
    return int(columns[best]), float(cuts[best])
