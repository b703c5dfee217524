"""Products of bfloat16 in float32 are the exact ones, rounded once; all else goes to the layers and backends."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline import matrix_products
from pipeline.matrix_products import PIECE, attend, multiplies_in_float32, project

ROWS, TOKENS, HEADS, DIM = 2, PIECE + 100, 3, 64
ROUNDING = 2**-8  # of bfloat16, to the nearest


@pytest.fixture(autouse=True)
def _slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(matrix_products, "is_quick_in_bfloat16", lambda: False)
    with torch.no_grad():
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=ROUNDING, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool) -> None:
    """Of tokens in several pieces, the last of them shorter."""
    states, layer = draw(ROWS, TOKENS, HEADS * DIM), nn.Linear(HEADS * DIM, 50, bias).bfloat16()

    projected = project(layer, states)

    exact = states.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert_rounded_once(projected, exact)


@pytest.mark.parametrize("has_bias", [True, False])
def test_attention(has_bias: bool) -> None:
    """Each row with its own bias, which hides some of its keys and counts others many times."""
    query, key, value = (draw(ROWS, count, HEADS, DIM, seed=count) for count in (100, 70, 71))
    key, bias = key[:, :70], torch.tensor([[0.0] * 69 + [6.0], [-torch.inf] + [1.0] * 69])[:, None, None]

    attended = attend(query, key, value[:, :70], bias if has_bias else None)

    queries, keys, values = (states.double().transpose(1, 2) for states in (query, key, value[:, :70]))
    logits = queries @ keys.mT / DIM**0.5 + (bias.double() if has_bias else 0)
    assert_rounded_once(attended, (logits.softmax(-1) @ values).transpose(1, 2))


@pytest.mark.parametrize("has_bias", [True, False])
def test_attention_that_learns(has_bias: bool) -> None:
    """With gradients, weights are rounded too; results and gradients are the exact ones up to some roundings."""
    torch.set_grad_enabled(True)
    states = [draw(ROWS, count, HEADS, DIM, seed=count).requires_grad_() for count in (100, 70, 71)]
    exact = [part.detach().double().requires_grad_() for part in states]
    bias = torch.tensor([[0.0] * 69 + [6.0], [-torch.inf] + [1.0] * 69])[:, None, None] if has_bias else None

    attended = attend(states[0], states[1], states[2][:, :70], bias)
    attended.float().square().sum().backward()
    queries, keys, values = (part.transpose(1, 2) for part in (exact[0], exact[1], exact[2][:, :70]))
    logits = queries @ keys.mT / DIM**0.5 + (0 if bias is None else bias.double())
    wanted = (logits.softmax(-1) @ values).transpose(1, 2)
    wanted.square().sum().backward()

    assert attended.dtype == torch.bfloat16
    assert_near(attended, wanted)
    for part, whole in zip(states, exact, strict=True):
        assert part.grad is not None
        assert whole.grad is not None
        assert_near(part.grad, whole.grad)


def assert_near(found: Tensor, exact: Tensor) -> None:
    assert (found.double() - exact).norm() < 4 * ROUNDING * exact.norm()


class Doubling(nn.Linear):
    """Gives more than its weights say, as a layer with a LoRA does."""

    def forward(self, states: Tensor) -> Tensor:
        """Give twice the product."""
        return 2 * super().forward(states)


def test_layers_that_are_more_than_their_weights_are_asked_themselves() -> None:
    """Such as one that wears a LoRA."""
    states, layer = draw(ROWS, TOKENS, DIM), Doubling(DIM, 50).bfloat16()

    assert torch.equal(project(layer, states), layer(states))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (torch.zeros(1, dtype=torch.bfloat16), True),
        (torch.zeros(1), False),
        (torch.zeros(1, dtype=torch.bfloat16, device="meta"), False),
    ],
    ids=["bfloat16", "float32", "elsewhere"],
)
def test_only_bfloat16_on_a_processor_is_multiplied_in_float32(states: Tensor, expected: bool) -> None:
    """And not where gradients are wanted."""
    assert multiplies_in_float32(states) == expected
    with torch.enable_grad():
        assert not multiplies_in_float32(states)


@pytest.mark.parametrize(("bfloat16_s", "quick"), [(0.1, True), (0.4, False)])
def test_what_is_quicker_is_measured(monkeypatch: pytest.MonkeyPatch, bfloat16_s: float, quick: bool) -> None:
    """The best times count: a processor that is busy with something else now and then decides alike."""
    monkeypatch.undo()
    times = {torch.bfloat16: iter([9.0, *[bfloat16_s] * 20]), torch.float32: iter([0.2, *[9.0] * 20])}
    monkeypatch.setattr(matrix_products, "_time_product", lambda dtype: next(times[dtype]))

    assert matrix_products.is_quick_in_bfloat16.__wrapped__() == quick


def test_a_trial_takes_time() -> None:
    """Some, in either format."""
    times = [matrix_products._time_product(dtype) for dtype in (torch.bfloat16, torch.float32)]

    assert all(0 < seconds < 10 for seconds in times)
