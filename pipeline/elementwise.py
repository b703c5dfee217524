"""What the transformer does to its numbers one by one: norms of queries and keys, rotations, the activation.

On a processor such work waits for memory. Where no gradients are wanted it is done there in fewer passes, in place or
in pieces that stay in the cache; graphics cards, training, and torch.compile, which does the like by itself, keep
torch's own functions. Both give the same up to rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 2**17  # numbers: with a scratch of the same size they fit in a core's cache
GELU_SLOPE, GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def is_only_computed(states: Tensor) -> bool:
    """Whether a processor computes with these and nothing else: they are neither differentiated nor compiled."""
    return states.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def rotate(states: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighbouring pairs of each head, (B, S, heads, head_dim), as complex numbers by those of a table.

    Source: arXiv:2104.09864, eq. 34. One pass over the states, where sines and cosines of their own take six. Without
    gradients it may write over the states.
    """
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    turned = pairs * rotary if torch.is_grad_enabled() else pairs.mul_(rotary)
    return torch.view_as_real(turned).flatten(-2).type_as(states)


def in_float32(function: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """Give function(states), (B, S, d), of a function of each token, computed in float32, in the states' type."""
    if not is_only_computed(states) or states.dtype == torch.float32:
        return function(states.float()).type_as(states)
    return _write(lambda piece: function(piece.float()), torch.empty_like(states), states)


def normalise(norm: nn.RMSNorm, states: Tensor) -> Tensor:
    """Give norm(states), (B, S, d). May write over the states."""
    if not is_only_computed(states):
        return norm(states)

    def scale(piece: Tensor) -> Tensor:
        return piece.float().mul_(_inverse_rms(norm, piece)).mul_(norm.weight)

    return _write(scale, states, states)


def normalise_and_rotate(norm: nn.RMSNorm, states: Tensor, heads: int, rotary: Tensor) -> Tensor:
    """Give norm(states), (B, S, d), as rotated heads (B, S, heads, head_dim). May write over the states."""
    if not is_only_computed(states):
        return rotate(norm(states).unflatten(2, (heads, -1)), rotary)

    def turn(piece: Tensor, turns: Tensor) -> Tensor:
        # a token's norm is one factor for all its pairs, so the rotation takes it along
        turns = turns * _inverse_rms(norm, piece).unsqueeze(-1)
        return rotate(piece.float().mul_(norm.weight).unflatten(2, (heads, -1)), turns).flatten(2)

    return _write(turn, states, states, rotary).unflatten(2, (heads, -1))


def add(states: Tensor, update: Tensor) -> Tensor:
    """Give states + update, of one shape. May write over the update."""
    return update.add_(states) if is_only_computed(update) else states + update


def add_gated(states: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Give states + update * gate, computed in the gate's type, float32. May write over the update."""
    if not is_only_computed(update) or update.shape != states.shape:
        return torch.addcmul(states, update, gate).type_as(states)
    if update.dtype == gate.dtype:
        return torch.addcmul(states, update, gate, out=update)
    return _write(lambda tokens, change: torch.addcmul(tokens, change, gate), update, states, update)


def activate(states: Tensor) -> Tensor:
    """Give x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) in place: GELU by tanh, arXiv:1606.08415, section 2."""
    slope = torch.tensor(GELU_SLOPE)
    for piece in states.view(-1).split(PIECE):
        number = piece.float()
        slopes = torch.addcmul(slope, number, number, value=GELU_SLOPE * GELU_CUBIC)
        piece.mul_(slopes.mul_(number).sigmoid_())
    return states


def feed_forward(ffn: Any, states: Tensor) -> Tensor:
    """Give ffn(states) for a stock feed-forward whose activation is GELU by tanh, (B, S, d)."""
    if not is_only_computed(states):
        return ffn(states)
    expand, _, contract = ffn.net
    return contract(activate(expand.proj(states)))


def _write(function: Callable[..., Tensor], out: Tensor, *states: Tensor) -> Tensor:
    """Write function(*states), of tokens by themselves, over `out`, (B, S, d); piece by piece, unless in place."""
    tokens = out.shape[1] if out.dtype == torch.float32 else max(1, PIECE // (out.shape[0] * out.shape[2]))
    for piece, *given in zip(*(each.split(tokens, dim=1) for each in (out, *states)), strict=True):
        result = function(*given)
        if result.data_ptr() != piece.data_ptr():
            piece.copy_(result)
    return out


def _inverse_rms(norm: nn.RMSNorm, states: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    return lengths.square_().div_(states.shape[-1]).add_(norm.eps or 0).rsqrt_()
