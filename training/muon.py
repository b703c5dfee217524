"""Muon: momentum whose update is made orthogonal, matrix by matrix.

Source: Keller Jordan, kellerjordan.github.io/posts/muon.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # the source's quintic; five rounds there; three do here, where they are a fifth of a step
ROUNDS = 3


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for weights of two or more dimensions; a convolution counts as (out, everything else)."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"])
                weight.add_(orthogonalise(ahead.flatten(1)).view_as(weight), alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near sqrt(max(1, rows / columns)): steps of one size for every output."""
    rows, columns = matrix.shape
    state = matrix if rows <= columns else matrix.T
    state = state / (state.norm() + 1e-7)
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        square = state @ state.T
        state = linear * state + (cubic * square + quintic * square @ square) @ state
    state = state if rows <= columns else state.T
    return state * max(1.0, rows / columns) ** 0.5
