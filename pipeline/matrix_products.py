"""The transformer's matrix products: linear layers and attention.

What is quick depends on the processor, and is measured once. Many have no units for bfloat16, or slow ones: there two
bfloat16 matrices take twice as long to multiply as two in float32, so operands in bfloat16 are brought to float32 piece
by piece, multiplied, and the product is rounded back: the same sums of the same numbers, with a scratch of a few MB. In
float32, oneDNN is twice as quick on some (AMD's) as MKL, which torch's linear layers and attention go by. Where
bfloat16 is quick, torch's attention in it can still be slow: it multiplies piece by small piece, and with units for
matrices, half as quickly where there are not so many keys as those units hold, or a multiple. All this is without
gradients; with them, only attention in bfloat16 is ours, where its weights are few enough to be kept. The rest goes to
torch's layers and to diffusers' choice of attention.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from pipeline.elementwise import is_only_computed

PIECE = 512  # rows: many enough for the full speed of a product
MAX_LOGITS = 2**20  # at once, for each thread: 4 MB
MAX_MIXED_LOGITS = 2**18  # the same where values are in bfloat16: 1 MB, as quick as 4 there
MAX_LEARNT_LOGITS = 2**24  # which are kept for their gradients, for each attention
KEYS = 256  # whose values are summed up at once: sums of more are rounded worse than torch's own
MANY_KEYS = 512  # from which on attention with logits in float32 and values in bfloat16 can be the quicker one
MIN_ROWS = 64  # whose logits are computed at once, however many keys there are
TRIALS, TRIAL_SIZE, TRIAL_HEAD = 7, 512, 128
FEW_KEYS = 126  # of a trial: those of the default negative prompt
FEW_ROWS = 3  # up to these, MKL's product depends on where its operands lie in memory, as seen on an AMD EPYC
GAIN = 1.2  # of the speed of oneDNN over MKL, and of full units over others, from which on it is worth the detour
UNIT = 16  # rows, and pairs of numbers, that a unit for matrices holds (Intel's AMX: tiles of 16 rows of 64 bytes)


class Linear(nn.Linear):
    """A linear layer whose product is computed in the way that is quick, whatever hooks or adapters it wears."""

    def forward(self, states: Tensor) -> Tensor:
        """Give (..., out) of states (..., in)."""
        # in 8 or 4 bits, weights are a type of their own, which multiplies by itself
        is_plain = type(self.weight) is nn.Parameter and self.weight.dtype == states.dtype
        if not is_plain or not _is_ours(states):
            return super().forward(states)
        if states.dtype == torch.float32:
            few = states.shape[:-1].numel() <= FEW_ROWS and torch.backends.mkldnn.is_available()
            ours = few or is_onednn_quick()
            return _multiply_by_onednn(states, self.weight, self.bias) if ours else super().forward(states)
        return super().forward(states) if is_quick_in_bfloat16() else self._multiply_in_float32(states)

    def _multiply_in_float32(self, states: Tensor) -> Tensor:
        multiply = _multiply_by_onednn if is_onednn_quick() else F.linear
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        projected = states.new_empty(*states.shape[:-1], self.out_features)
        rows = zip(states.flatten(0, -2).split(PIECE), projected.flatten(0, -2).split(PIECE), strict=True)
        for given, wanted in rows:
            wanted.copy_(multiply(given.float(), weight, bias))
        return projected


def multiply_quickly(model: nn.Module) -> None:
    """Let all linear layers of a model multiply as `Linear` does; their weights stay."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


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
    if is_native and _learns_in_bfloat16(value) and query.shape[1] * key.shape[:3].numel() <= MAX_LEARNT_LOGITS:
        return _attend_at_once(query, key, value, bias)
    attend_head = _choose_attention(value) if is_native else None
    if attend_head is None:
        if is_native and _wants_full_units(value):
            key, value, bias = _fill_units(key, value, bias)
        mask = None if bias is None else bias.type_as(query)
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=backend, parallel_config=parallel_config
        )
    attended = torch.empty_like(query)
    for row in range(len(query)):
        mask = None if bias is None else bias[row, 0].float()
        for head in range(query.shape[2]):
            asking, asked, given = (states[row, :, head] for states in (query, key, value))
            attend_head(asking, asked, given, mask, attended[row, :, head])
    return attended


def _is_ours(states: Tensor) -> bool:
    return is_only_computed(states) and states.dtype in (torch.float32, torch.bfloat16)


HeadAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], None]


def _choose_attention(states: Tensor) -> HeadAttention | None:
    """Give what attends in one head, or None if that is torch's own for all heads.

    Takes queries (S, head_dim), keys and values (n, head_dim), and a bias (1, n), float32; writes to (S, head_dim).
    """
    if not _is_ours(states):
        return None
    keys = states.shape[1]
    if is_onednn_quick() and keys >= KEYS:  # pieces of fewer keys are not worth their number
        return _attend_by_onednn
    if states.dtype == torch.float32:
        return None
    if not is_quick_in_bfloat16():
        return _attend_in_float32
    return _attend_in_both if keys >= MANY_KEYS and is_attention_quick_in_both() else None


def _wants_full_units(states: Tensor) -> bool:
    keys, head_dim = states.shape[1], states.shape[-1]
    is_odd = keys % UNIT != 0 and head_dim % UNIT == 0  # of heads that fill no unit, there is nothing to gain
    is_quick = _is_ours(states) and states.dtype == torch.bfloat16 and is_quick_in_bfloat16()
    return is_odd and is_quick and is_attention_quick_in_full_units()


def _fill_units(key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Add keys and values that a bias hides, as `attend` takes them, up to a multiple of `UNIT`."""
    missing = -key.shape[1] % UNIT
    bias = key.new_zeros(1, 1, 1, key.shape[1]) if bias is None else bias
    key, value = (F.pad(states, (0, 0, 0, 0, 0, missing)) for states in (key, value))
    return key, value, F.pad(bias, (0, missing), value=-torch.inf)


def _attend_in_float32(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, attended: Tensor) -> None:
    query, key, value = (states[None, None].float() for states in (query, key, value))
    attended.copy_(F.scaled_dot_product_attention(query, key, value, attn_mask=bias)[0, 0])


def _attend_by_onednn(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, attended: Tensor) -> None:
    value = value.float().contiguous()
    for weights, wanted in _weigh_by_onednn(query, key, bias, attended, MAX_LOGITS):
        sums = zip(weights.split(KEYS, dim=1), value.split(KEYS), strict=True)
        wanted.copy_(reduce(Tensor.add_, (_multiply_by_onednn(some, given.T, None) for some, given in sums)))


def _attend_in_both(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, attended: Tensor) -> None:
    """Attend with logits in float32 and values in bfloat16, to which torch's own rounds the weights too."""
    value = value.contiguous()
    for weights, wanted in _weigh_by_onednn(query, key, bias, attended, MAX_MIXED_LOGITS):
        torch.mm(weights.type_as(value), value, out=wanted)


def _weigh_by_onednn(
    query: Tensor, key: Tensor, bias: Tensor | None, attended: Tensor, max_logits: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the weights of a piece of the queries, (rows, n) float32, with its part of the result."""
    query, key = query.float() * query.shape[-1] ** -0.5, key.float().contiguous()
    rows = min(PIECE, max(MIN_ROWS, max_logits // len(key))) * torch.get_num_threads()
    for asking, wanted in zip(query.split(rows), attended.split(rows), strict=True):
        logits = _multiply_by_onednn(asking, key, None if bias is None else bias[0])
        yield torch.softmax(logits, dim=-1, out=logits), wanted


def _learns_in_bfloat16(states: Tensor) -> bool:
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and torch.is_grad_enabled()


def _attend_at_once(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """As `attend`, all weights in memory: thrice as quick with gradients as torch's own where bfloat16 is quick."""
    query, key, value = (states.type_as(value).transpose(1, 2) for states in (query, key, value))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1).type_as(value)
    return (weights @ value).transpose(1, 2)


def _multiply_by_onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give the product of states (..., in) with a weight (out, in), as `F.linear` does."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


@cache
def is_quick_in_bfloat16() -> bool:
    """Whether this processor multiplies matrices in bfloat16 quicker than in float32. Measured once, in 0.1 s."""
    usual, other = torch.ones(TRIAL_SIZE, TRIAL_SIZE), torch.ones(TRIAL_SIZE, TRIAL_SIZE, dtype=torch.bfloat16)
    multiply = _multiply_by_onednn if is_onednn_quick() else F.linear
    return _measure_gain(lambda: multiply(usual, usual, None), lambda: F.linear(other, other)) > 1


@cache
def is_onednn_quick() -> bool:
    """Whether oneDNN multiplies matrices in float32 much quicker here than torch does. Measured once, in 0.1 s."""
    if not torch.backends.mkldnn.is_available():
        return False
    matrix = torch.ones(TRIAL_SIZE, TRIAL_SIZE)
    return _measure_gain(lambda: F.linear(matrix, matrix), lambda: _multiply_by_onednn(matrix, matrix, None)) > GAIN


@cache
def is_attention_quick_in_both() -> bool:
    """Whether attention with logits in float32 and values in bfloat16 is quicker here than torch's. Measured once."""
    if not torch.backends.mkldnn.is_available():
        return False
    query, keys = (torch.ones(rows, TRIAL_HEAD, dtype=torch.bfloat16) for rows in (TRIAL_SIZE, 2 * TRIAL_SIZE))
    attended, states = torch.empty_like(query), (query[None, None], keys[None, None], keys[None, None])

    def attend_in_both() -> Tensor:
        _attend_in_both(query, keys, keys, None, attended)
        return attended

    return _measure_gain(lambda: F.scaled_dot_product_attention(*states), attend_in_both) > 1


@cache
def is_attention_quick_in_full_units() -> bool:
    """Whether torch's attention in bfloat16 is much quicker here with hidden keys that fill units. Measured once."""
    query, keys = (torch.ones(1, rows, 1, TRIAL_HEAD, dtype=torch.bfloat16) for rows in (TRIAL_SIZE, FEW_KEYS))

    def attend_to(key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        asking, asked, given = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(asking, asked, given, attn_mask=bias)

    filled = _fill_units(keys, keys, None)
    return _measure_gain(lambda: attend_to(keys, keys, None), lambda: attend_to(*filled)) > GAIN


def _measure_gain(usual: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
    """Give how much quicker the other one is."""
    # On one core, in turn, by the time this thread computes, the best of several: others' work must not decide this.
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trials = [(_time(usual), _time(other)) for _ in range(TRIALS)]
    finally:
        torch.set_num_threads(cores)
    usual_s, other_s = (min(times) for times in zip(*trials, strict=True))
    return usual_s / other_s


def _time(multiply: Callable[[], Tensor]) -> float:
    """Give the seconds that this thread computes on a product."""
    began = time.thread_time()
    multiply()
    return time.thread_time() - began
