"""Products are the exact ones, rounded once, by whichever way is quick; all else goes to the layers and backends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import matrix_products
from pipeline.matrix_products import (
    PIECE,
    Linear,
    attend,
    is_attention_quick_in_both,
    is_attention_quick_in_full_units,
    is_onednn_quick,
    is_quick_in_bfloat16,
    multiply_quickly,
)

ROWS, TOKENS, HEADS, DIM = 2, PIECE + 100, 3, 64
ROUNDING = 2**-8  # of bfloat16, to the nearest
WAYS = {"torch": False, "onednn": True}


@pytest.fixture(autouse=True, params=WAYS.values(), ids=WAYS)
def onednn(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[bool]:
    """On a processor that is slow in bfloat16, with oneDNN no quicker than torch or quicker."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("This build of torch has no oneDNN.")
    monkeypatch.setattr(matrix_products, "is_quick_in_bfloat16", lambda: False)
    monkeypatch.setattr(matrix_products, "is_onednn_quick", lambda: request.param)
    with torch.no_grad():
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    rounding = {torch.bfloat16: ROUNDING, torch.float32: 1e-5}[found.dtype]
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool, dtype: torch.dtype) -> None:
    """Of tokens in several pieces, the last of them shorter."""
    states, layer = draw(ROWS, TOKENS, HEADS * DIM, dtype=dtype), Linear(HEADS * DIM, 50, bias, dtype=dtype)

    projected = layer(states)

    exact = states.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert projected.dtype == dtype
    assert_rounded_once(projected, exact)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_where_a_weight_lies_changes_no_bit(rows: int) -> None:
    """Weights that are fetched lie elsewhere each time, not always at an address that 64 divides."""
    layer, states = Linear(48, 96), draw(rows, 48, dtype=torch.float32)
    expected, weight, memory = layer(states), layer.weight, torch.empty(layer.weight.numel() + 64)

    for offset in range(1, 16):
        layer.weight = nn.Parameter(memory[offset : offset + weight.numel()].view_as(weight).copy_(weight))
        assert torch.equal(layer(states), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_bias", [True, False])
def test_attention(monkeypatch: pytest.MonkeyPatch, has_bias: bool, dtype: torch.dtype) -> None:
    """Each row with its own bias, which hides some of its keys and counts others many times."""
    monkeypatch.setattr(matrix_products, "KEYS", 40)  # so that oneDNN takes part, and sums up twice
    query, key, value = (draw(ROWS, count, HEADS, DIM, seed=count, dtype=dtype) for count in (600, 70, 71))
    before = query.clone()
    key, bias = key[:, :70], torch.tensor([[0.0] * 69 + [6.0], [-torch.inf] + [1.0] * 69])[:, None, None]

    attended = attend(query, key, value[:, :70], bias if has_bias else None)

    queries, keys, values = (states.double().transpose(1, 2) for states in (query, key, value[:, :70]))
    logits = queries @ keys.mT / DIM**0.5 + (bias.double() if has_bias else 0)
    assert attended.dtype == dtype
    assert_rounded_once(attended, (logits.softmax(-1) @ values).transpose(1, 2))
    assert torch.equal(query, before)


def test_attention_to_many_keys_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few logits at once, the last piece shorter: the same."""
    query, key, value = (draw(1, 150, 1, DIM, seed=seed, dtype=torch.float32) for seed in range(3))
    usual = attend(query, key, value)

    monkeypatch.setattr(matrix_products, "MAX_LOGITS", 150)
    monkeypatch.setattr(matrix_products, "MIN_ROWS", 40 // torch.get_num_threads())
    monkeypatch.setattr(matrix_products, "KEYS", 40)

    torch.testing.assert_close(attend(query, key, value), usual)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("has_bias", [True, False])
def test_attention_with_values_in_bfloat16(monkeypatch: pytest.MonkeyPatch, has_bias: bool) -> None:
    """Weights are rounded as torch's own attention rounds them, logits are not; in pieces, the last of them shorter."""
    for name, is_so in (("is_quick_in_bfloat16", True), ("is_onednn_quick", False)):
        monkeypatch.setattr(matrix_products, name, lambda is_so=is_so: is_so)
    monkeypatch.setattr(matrix_products, "is_attention_quick_in_both", lambda: True)
    monkeypatch.setattr(matrix_products, "MANY_KEYS", 70)
    query, key, value = (draw(ROWS, count, HEADS, DIM, seed=count) for count in (TOKENS, 70, 71))
    bias = torch.tensor([[0.0] * 69 + [6.0], [-torch.inf] + [1.0] * 69])[:, None, None] if has_bias else None
    before = query.clone()

    attended = attend(query, 4 * key, value[:, :70], bias)

    queries, keys, values = (states.double().transpose(1, 2) for states in (query, 4 * key, value[:, :70]))
    logits = queries @ keys.mT / DIM**0.5 + (0 if bias is None else bias.double())
    exact = (logits.softmax(-1) @ values).transpose(1, 2)
    assert attended.dtype == torch.bfloat16
    assert (attended.double() - exact).norm() < ROUNDING * exact.norm()
    assert torch.equal(query, before)
    monkeypatch.setattr(matrix_products, "is_attention_quick_in_both", lambda: False)
    theirs = attend(query, 4 * key, value[:, :70], bias)
    assert not torch.equal(theirs, attended)
    assert (theirs.double() - exact).norm() < ROUNDING * exact.norm()


@pytest.mark.parametrize("has_bias", [True, False])
def test_attention_in_full_units(monkeypatch: pytest.MonkeyPatch, has_bias: bool) -> None:
    """Torch gets a multiple of 16 keys, of which those that are added count nothing, whatever they would be like."""
    for name, is_so in (("is_quick_in_bfloat16", True), ("is_onednn_quick", False)):
        monkeypatch.setattr(matrix_products, name, lambda is_so=is_so: is_so)
    monkeypatch.setattr(matrix_products, "is_attention_quick_in_both", lambda: False)
    monkeypatch.setattr(matrix_products, "is_attention_quick_in_full_units", lambda: True)
    dispatch, counts = matrix_products.dispatch_attention_fn, []

    def count_keys(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        counts.append(key.shape[1])
        return dispatch(query, key, value, **options)

    monkeypatch.setattr(matrix_products, "dispatch_attention_fn", count_keys)
    # logits so low that hidden keys, at nought, would outweigh all others
    query, key, value = 40 + draw(ROWS, 100, HEADS, DIM), draw(ROWS, 70, HEADS, DIM) - 40, draw(ROWS, 70, HEADS, DIM)
    bias = torch.tensor([[0.0] * 69 + [6.0], [-torch.inf] + [1.0] * 69])[:, None, None] if has_bias else None

    attended = attend(query, key, value, bias)
    attend(query, key[:, :64], value[:, :64])
    attend(query[..., :40], key[..., :40], value[..., :40])

    queries, keys, values = (states.double().transpose(1, 2) for states in (query, key, value))
    logits = queries @ keys.mT / DIM**0.5 + (0 if bias is None else bias.double())
    assert_near(attended, (logits.softmax(-1) @ values).transpose(1, 2))
    assert counts == [80, 64, 70]


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


def test_layers_of_a_model_keep_their_weights() -> None:
    """And what is no plain linear layer stays what it is."""
    model = nn.Sequential(nn.Linear(DIM, 50), nn.LayerNorm(50), nn.Bilinear(2, 2, 2))
    weight = model[0].weight

    multiply_quickly(model)

    assert [type(layer) for layer in model] == [Linear, nn.LayerNorm, nn.Bilinear]
    assert model[0].weight is weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hooks_change_no_bit(dtype: torch.dtype) -> None:
    """Weights that wait elsewhere are brought by hooks, and the product is computed alike."""
    states, layer = draw(ROWS, TOKENS, DIM, dtype=dtype), Linear(DIM, 50, dtype=dtype)
    plain = layer(states)
    calls = []

    layer.register_forward_hook(lambda layer, inputs, output: calls.append(output))

    assert torch.equal(layer(states), plain)
    assert len(calls) == 1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_onednn_does_not_mind_where_the_weight_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's weights lie anywhere; MKL, which torch asks, gives other roundings then on some processors."""
    monkeypatch.setattr(matrix_products, "is_onednn_quick", lambda: True)
    states, layer = draw(1, 1, DIM, dtype=torch.float32), Linear(DIM, 50)
    weight, product = layer.weight.detach().clone(), layer(states)
    room = torch.empty(weight.numel() + 16)

    for offset in range(16):
        layer.weight = nn.Parameter(room[offset : offset + weight.numel()].view_as(weight).copy_(weight))
        assert torch.equal(layer(states), product)


def test_weights_in_another_format_are_left_to_torch() -> None:
    """It says what is wrong."""
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(DIM, 50)(draw(1, 2, DIM))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_with_gradients_torch_multiplies(dtype: torch.dtype) -> None:
    """For oneDNN's product gives none."""
    layer = Linear(DIM, 50, dtype=dtype)
    with torch.enable_grad():
        layer(draw(1, 2, DIM, dtype=dtype)).sum().backward()

    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_compiled_is_left_to_the_compiler(dtype: torch.dtype) -> None:
    """It cannot compile our products, and knows oneDNN itself. A graph of torch's own operators goes to it, whole."""
    layer, states, asking = Linear(4, 5, dtype=dtype), draw(2, 4, dtype=dtype), draw(1, TOKENS, 2, 8, dtype=dtype)
    used: set[str] = set()

    def multiply() -> tuple[Tensor, Tensor]:
        return layer(states), attend(asking, asking, asking)

    def note(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        used.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(multiply, backend=note, fullgraph=True)()

    assert used
    assert not any("mkldnn" in name for name in used)
    rounding = {torch.bfloat16: 2 * ROUNDING, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(compiled, multiply(), rtol=rounding, atol=rounding)


def test_where_bfloat16_is_quick_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit."""
    monkeypatch.setattr(matrix_products, "is_quick_in_bfloat16", lambda: True)
    states, layer = draw(ROWS, TOKENS, DIM), Linear(DIM, 50, dtype=torch.bfloat16)

    assert torch.equal(layer(states), torch.nn.functional.linear(states, layer.weight, layer.bias))


@pytest.mark.parametrize(("other_s", "gain"), [(0.1, 2.0), (0.4, 0.5)])
def test_what_is_quicker_is_measured(monkeypatch: pytest.MonkeyPatch, other_s: float, gain: float) -> None:
    """The best times count: a processor that is busy with something else now and then decides alike."""
    times = {"usual": iter([0.2, *[9.0] * 20]), "other": iter([9.0, *[other_s] * 20])}
    monkeypatch.setattr(matrix_products, "_time", lambda name: next(times[name]))

    assert matrix_products._measure_gain("usual", "other") == pytest.approx(gain)  # type: ignore[arg-type]  # names only


@pytest.mark.parametrize("gain", [0.9, 1.1, 2.0])
def test_decisions_follow_the_measured_gain(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """To be worth the detour, oneDNN must be much quicker."""
    monkeypatch.setattr(matrix_products, "_measure_gain", lambda usual, other: gain)

    assert is_quick_in_bfloat16.__wrapped__() == (gain > 1)
    assert is_attention_quick_in_both.__wrapped__() == (gain > 1 and torch.backends.mkldnn.is_available())
    assert is_attention_quick_in_full_units.__wrapped__() == (gain > 1.2)
    assert is_onednn_quick.__wrapped__() == (gain > 1.2 and torch.backends.mkldnn.is_available())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_a_trial_of_attention_compares_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's and that with values in bfloat16; torch's and that in full units."""
    results: list[Tensor] = []

    def run_both(usual: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
        results.extend((usual().squeeze(), other().squeeze()))
        return 2.0

    monkeypatch.setattr(matrix_products, "_measure_gain", run_both)

    assert is_attention_quick_in_both.__wrapped__()
    assert is_attention_quick_in_full_units.__wrapped__()
    assert torch.equal(*results[:2])
    assert torch.equal(*results[2:])


def test_a_trial_takes_time() -> None:
    """Some."""
    assert 0 < matrix_products._time(lambda: torch.ones(300, 300) @ torch.ones(300, 300)) < 10
