"""The transformer's matrix products: linear layers and attention.

Many processors have no units for bfloat16, or slow ones: there two bfloat16 matrices take twice as long to multiply as
two in float32. On such a processor operands in bfloat16 are brought to float32 piece by piece, multiplied, and the
product is rounded back: the same sums of the same numbers, with a scratch of a few MB. Everything else goes to the
layers themselves and to diffusers' choice of attention.
"""

import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

PIECE = 512  # rows: many enough for the full speed of a product
TRIALS, TRIAL_SIZE = 7, 512


def project(layer: nn.Module, states: Tensor) -> Tensor:
    """Give layer(states), (B, S, out), of a linear layer and states (B, S, in)."""
    # Only of a plain layer are the weights all there is: not with a LoRA, in 4 bits, or kept in 8.
    if type(layer) is not nn.Linear or layer.weight.dtype != states.dtype or not multiplies_in_float32(states):
        return layer(states)
    weight, bias = layer.weight.float(), None if layer.bias is None else layer.bias.float()
    projected = states.new_empty(*states.shape[:-1], layer.out_features)
    rows = zip(states.flatten(0, -2).split(PIECE), projected.flatten(0, -2).split(PIECE), strict=True)
    for given, wanted in rows:
        wanted.copy_(F.linear(given.float(), weight, bias))
    return projected


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """Give the attention of queries (B, S, heads, head_dim) to keys and values (B, n, heads, head_dim).

    bias: (B, 1, 1, n), added to the logits.
    backend, parallel_config: as of `dispatch_attention_fn`; None is what diffusers is set to.
    """
    is_native = backend in (None, AttentionBackendName.NATIVE) and parallel_config is None
    if is_native and _learns_in_bfloat16(value):
        return _attend_at_once(query, key, value, bias)
    if not is_native or not multiplies_in_float32(query):
        mask = None if bias is None else bias.type_as(query)
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=backend, parallel_config=parallel_config
        )
    attended = torch.empty_like(query)
    for row in range(len(query)):
        mask = None if bias is None else bias[row : row + 1].float()
        for head in range(query.shape[2]):
            asking, asked, given = (states[row, :, head].float()[None, None] for states in (query, key, value))
            attended[row, :, head] = F.scaled_dot_product_attention(asking, asked, given, attn_mask=mask)[0, 0]
    return attended


def _learns_in_bfloat16(states: Tensor) -> bool:
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and torch.is_grad_enabled()


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """As `attend`, all weights in memory: thrice as quick with gradients as torch's own where bfloat16 is quick."""
    query, key, value = (states.type_as(value).transpose(1, 2) for states in (query, key, value))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1).type_as(value)
    return (weights @ value).transpose(1, 2)


def multiplies_in_float32(states: Tensor) -> bool:
    """Whether products of these states are computed in float32: in bfloat16 where that is slower, without gradients."""
    on_processor = states.device.type == "cpu" and states.dtype == torch.bfloat16
    return on_processor and not torch.is_grad_enabled() and not is_quick_in_bfloat16()


@cache
def is_quick_in_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16 quicker than in float32. Measured once, in 0.1 s."""
    # On one core, in turn, by the time this thread computes, the best of several: others' work must not decide this.
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trials = [(_time_product(torch.bfloat16), _time_product(torch.float32)) for _ in range(TRIALS)]
    finally:
        torch.set_num_threads(cores)
    quick, usual = (min(times) for times in zip(*trials, strict=True))
    return quick < usual


def _time_product(dtype: torch.dtype) -> float:
    """Give the seconds that this thread computes on a product of two matrices."""
    matrix = torch.ones(TRIAL_SIZE, TRIAL_SIZE, dtype=dtype)
    began = time.thread_time()
    _ = matrix @ matrix
    return time.thread_time() - began
