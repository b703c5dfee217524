"""Muon: momentum whose update is made orthogonal, matrix by matrix.

Source: Keller Jordan, kellerjordan.github.io/posts/muon.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.matrix_products import is_quick_in_bfloat16

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # the source's quintic; five rounds there; three do here, where they are a fifth of a step
ROUNDS = 3


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for weights of two or more dimensions; a convolution counts as (out, everything else).

    Of `count` workers that all have the same gradients, each orthogonalises every count-th weight's for all.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, rank: int = 0, count: int = 1
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})
        self.rank, self.count = rank, count

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            updates = torch.zeros(sum(weight.numel() for weight in weights))
            for index, (weight, update) in enumerate(zip(weights, _parts(updates, weights), strict=True)):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                if index % self.count == self.rank:
                    ahead = weight.grad.lerp(momentum, group["momentum"])
                    update.copy_(orthogonalise(ahead.flatten(1)).view_as(weight))
            if self.count > 1:
                dist.all_reduce(updates)
            for weight, update in zip(weights, _parts(updates, weights), strict=True):
                weight.add_(update, alpha=-group["lr"])


def _parts(flat: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """Give the weights' parts of a flat tensor, in their shapes."""
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near sqrt(max(1, rows / columns)): steps of one size for every output."""
    rows, columns = matrix.shape
    state = matrix if rows <= columns else matrix.T
    state = state / (state.norm() + 1e-7)
    if is_quick_in_bfloat16():  # as at the source
        state = state.bfloat16()
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        square = state @ state.T
        state = linear * state + (cubic * square + quintic * square @ square) @ state
    state = state if rows <= columns else state.T
    return state.float() * max(1.0, rows / columns) ** 0.5
