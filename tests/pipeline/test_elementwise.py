"""The quicker ways without gradients give what torch's own functions give, which run where gradients are wanted."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from pipeline.elementwise import (
    PIECE,
    activate,
    add,
    add_gated,
    feed_forward,
    normalise,
    normalise_and_rotate,
    rotate,
)

ROWS, TOKENS, HEADS, DIM = 2, 700, 3, 96
# rounding: of several float32 operations; of one bfloat16 one more or less
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


@pytest.fixture
def states() -> Tensor:
    """Tokens, some of them very small or large."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, TOKENS, DIM, generator=generator) * torch.logspace(-3, 3, TOKENS)[:, None]


def make_norm(dtype: torch.dtype) -> nn.RMSNorm:
    norm = nn.RMSNorm(DIM, eps=1e-6)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.to(dtype)


def make_table() -> Tensor:
    angles = torch.rand(1, TOKENS, 1, DIM // HEADS // 2) * 6
    return torch.polar(torch.ones_like(angles), angles)


def assert_same_without_gradients(compute: Callable[[Tensor], Tensor], states: Tensor) -> None:
    with_gradients = compute(states.clone()).detach()
    with torch.no_grad():
        without = compute(states.clone())

    tolerance = TOLERANCES[states.dtype]
    assert without.dtype == with_gradients.dtype
    torch.testing.assert_close(without, with_gradients, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_norms_of_queries_in_cross_attention(states: Tensor, dtype: torch.dtype) -> None:
    """The root mean square norm of the whole token."""
    norm = make_norm(dtype)

    assert_same_without_gradients(lambda tokens: normalise(norm, tokens), states.to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_norms_with_rotations(states: Tensor, dtype: torch.dtype) -> None:
    """The rotation takes the norm's factor along."""
    norm, table = make_norm(dtype), make_table()

    assert_same_without_gradients(lambda tokens: normalise_and_rotate(norm, tokens, HEADS, table), states.to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shared_rows", [1, ROWS])
def test_additions(states: Tensor, dtype: torch.dtype, shared_rows: int) -> None:
    """Plain ones, and gated ones to tokens that rows may share; only the update may be written over."""
    gate, update = torch.rand(1, 1, DIM), states.flip(1).to(dtype)
    given = states[:shared_rows].to(dtype)

    assert_same_without_gradients(lambda added: add_gated(given, added, gate), update)
    assert_same_without_gradients(lambda added: add(update, added), update.flip(0))
    assert torch.equal(given, states[:shared_rows].to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_feed_forward(states: Tensor, dtype: torch.dtype) -> None:
    """The stock module with its activation in place, in several pieces."""
    torch.manual_seed(0)
    ffn = FeedForward(DIM, inner_dim=256, activation_fn="gelu-approximate").to(dtype)
    tokens = (states / states.abs().amax(dim=-1, keepdim=True)).to(dtype)

    assert tokens.shape[0] * tokens.shape[1] * 256 > 2 * PIECE
    assert_same_without_gradients(lambda some: feed_forward(ffn, some), tokens)


def test_the_activation_of_any_number() -> None:
    """From far below zero to far above it, in the form of the paper."""
    numbers = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([-1e6, 0.0, 1e6])])

    activated = activate(numbers.clone())

    expected = nn.functional.gelu(numbers.double(), approximate="tanh").float()
    torch.testing.assert_close(activated, expected, rtol=1e-5, atol=1e-6)


def test_a_rotation_turns_pairs() -> None:
    """By a right angle, (1, 2) becomes (-2, 1)."""
    table = torch.full((1, 1, 1, 1), 1j, dtype=torch.complex64)

    turned = rotate(torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), table)

    torch.testing.assert_close(turned.flatten(), torch.tensor([-2.0, 1.0]))
