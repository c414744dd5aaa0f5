"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for convolutions, AdamW for the rest, as one optimiser.

Muon makes the momentum of a weight matrix orthogonal before it is applied, so that all directions learn, not the few strong
ones: a network from scratch gets further with the same pictures. Its steps are scaled to the size of AdamW's (Liu et al. 2025,
arXiv:2502.16982, equation 4), so both share one rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N) -> the nearest matrix with singular values of about 1, by five Newton-Schulz rounds.

    The rounds run on the small square x x^T, with which they commute: less than half the work for wide matrices.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    square, identity = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(_ROUNDS):
        factor = a * identity + b * square + c * square @ square
        product = factor @ product
        square = factor @ square @ factor
    x = product @ x
    return x.T if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `orthogonal` true hold tensors of two or more axes, the first one the outputs.

    A group's `lr` is a number, or a scalar on the parameters' device: then nothing in a step is read back, and it may be a CUDA graph's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, momentum: float = 0.95) -> None:
        defaults = {"lr": rate, "weight_decay": 0.0, "orthogonal": False, "momentum": momentum, "betas": (0.9, 0.99)}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        for group in self.param_groups:
            update = self._muon if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update(parameter, group).mul_(group["lr"]))

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        nesterov = torch.lerp(parameter.grad, state["momentum"], group["momentum"])
        flat = nesterov.reshape(len(parameter), -1)
        return (orthogonalised(flat) * (0.2 * max(flat.shape) ** 0.5)).reshape(parameter.shape)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["steps"] = torch.zeros((), device=parameter.device)
        state["steps"] += 1
        state["first"].lerp_(parameter.grad, 1 - beta1)
        state["second"].lerp_(parameter.grad.square(), 1 - beta2)
        second = (state["second"] / (1 - beta2 ** state["steps"])).sqrt_().add_(1e-8)
        return state["first"] / (1 - beta1 ** state["steps"]) / second


def optimiser_for(network: nn.Module, rate: float, decay: float = 0.03) -> MuonAdamW:
    """Convolutions inside the network by Muon; the first one, the last ones, norms and biases by AdamW."""
    inner, outer, flat = [], [], []
    for name, parameter in network.named_parameters():
        outside = name.startswith("stem.") or (parameter.shape[2:] == (1, 1) and "head" in name)
        (flat if parameter.ndim < 2 else outer if outside else inner).append(parameter)
    return MuonAdamW(
        [
            {"params": inner, "orthogonal": True, "weight_decay": decay},
            {"params": outer, "weight_decay": decay},
            {"params": flat},
        ],
        rate,
    )
