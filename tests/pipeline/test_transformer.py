"""The network gives the reference implementation's numbers."""

import gzip
import json

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor

from pipeline.joint_attention import fold_padding
from pipeline.transformer import RotaryEmbedding, VideoAsPromptBlock, VideoAsPromptTransformer3DModel
from tests.pipeline.conftest import GOLDEN, GoldenCase, read_golden, read_json

STEP_INPUTS = ("hidden_states", "timestep")
TEXT_INPUTS = (
    "encoder_hidden_states",
    "text_row_counts",
    "reference_encoder_hidden_states",
    "reference_text_row_counts",
)
FOLDERS = {"transformer_a": "tiny_vap/transformer", "transformer_b": "transformer_b"}


def load(name: str, dtype: torch.dtype = torch.float32) -> VideoAsPromptTransformer3DModel:
    return VideoAsPromptTransformer3DModel.from_pretrained(GOLDEN / FOLDERS[name], dtype=dtype)


def predict(model: VideoAsPromptTransformer3DModel, inputs: dict[str, Tensor]) -> Tensor:
    """Give the velocity of one step: prepare a request of one branch, and run it."""
    constant = {name: inputs[name] for name in inputs if name not in STEP_INPUTS}
    constant |= {name: [constant[name]] for name in constant if name in TEXT_INPUTS}
    request = model.prepare(inputs["timestep"], **constant)
    return model(inputs["hidden_states"], request.times, request)


def arguments(golden: GoldenCase, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    names = {
        "hidden_states": "hidden_states",
        "encoder_hidden_states": "encoder_hidden_states",
        "encoder_hidden_states_image": "encoder_hidden_states_image",
        "reference_hidden_states": "hidden_states_mot_ref",
        "reference_encoder_hidden_states": "encoder_hidden_states_mot_ref",
        "reference_encoder_hidden_states_image": "encoder_hidden_states_image_mot_ref",
    }
    tensors = {ours: golden[f"in.{theirs}"].to(dtype) for ours, theirs in names.items()}
    return tensors | {"timestep": golden["in.timestep"]}


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_the_forward_pass_gives_the_reference_numbers(name: str) -> None:
    """In float32 the sample is the reference's to 1e-4; swapped or forgotten tensors move it by at least 2.4e-2."""
    golden = read_golden(name)

    sample = predict(load(name), arguments(golden))

    torch.testing.assert_close(sample, golden["out.sample"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_the_forward_pass_in_bfloat16_stays_near(name: str) -> None:
    """In bfloat16 the difference is rounding: 0.02 in the mean, 0.25 at most."""
    golden = read_golden(name)

    sample = predict(load(name, torch.bfloat16), arguments(golden, torch.bfloat16))

    difference = (sample.float() - golden["out.sample_bf16"]).abs()
    assert difference.mean() < 0.02
    assert difference.max() < 0.25


@torch.no_grad()
def test_both_streams_agree_after_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target and reference tokens are the reference implementation's after each block, not only at the end.

    The reference ends in the last block that has an expert, the third.
    """
    golden = read_golden("transformer_a")
    streams: list[tuple[Tensor, Tensor]] = []
    forward = VideoAsPromptBlock.forward

    def record(self: VideoAsPromptBlock, *args: object) -> tuple[Tensor, Tensor]:
        streams.append(forward(self, *args))
        return streams[-1]

    monkeypatch.setattr(VideoAsPromptBlock, "forward", record)
    predict(load("transformer_a"), arguments(golden))

    assert len(streams) == 4
    for index, (target, reference) in enumerate(streams):
        torch.testing.assert_close(target, golden[f"mid.block{index}.target"], atol=1e-4, rtol=0)
        if index < 2:
            torch.testing.assert_close(reference, golden[f"mid.block{index}.reference"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("stream", ["target", "reference"])
def test_positions_are_the_references(name: str, stream: str) -> None:
    """The target counts time from 0, the reference from -T to -1, both rows and columns from 0."""
    golden = read_golden(name)
    _, _, frames, height, width = golden["in.hidden_states"].shape
    head_dim = 2 * golden[f"rope.{stream}.angle_cos"].shape[-1]

    table = RotaryEmbedding(head_dim, precedes_target=stream == "reference")(
        (frames, height // 2, width // 2), torch.device("cpu")
    )

    torch.testing.assert_close(table.real[0, :, 0], golden[f"rope.{stream}.angle_cos"], atol=1e-6, rtol=0)
    torch.testing.assert_close(table.imag[0, :, 0], golden[f"rope.{stream}.angle_sin"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 17, 511, 512])
@torch.no_grad()
def test_folding_the_padding_changes_no_number(rows: int) -> None:
    """A text of any length with its zero rows folded into one gives what all 512 rows give."""
    golden = read_golden("transformer_b")
    model, padded = load("transformer_b"), arguments(golden)
    for name in ("encoder_hidden_states", "reference_encoder_hidden_states"):
        padded[name] = torch.cat([padded[name][:, :rows], torch.zeros_like(padded[name][:, rows:])], dim=1)

    text, counts = fold_padding(padded["encoder_hidden_states"][:, :rows], 512)
    reference_text, reference_counts = fold_padding(padded["reference_encoder_hidden_states"][:, :rows], 512)
    folded = padded | {
        "encoder_hidden_states": text,
        "text_row_counts": counts,
        "reference_encoder_hidden_states": reference_text,
        "reference_text_row_counts": reference_counts,
    }

    torch.testing.assert_close(predict(model, folded), predict(model, padded), atol=1e-5, rtol=0)


def test_the_14b_checkpoint_fits_name_for_name() -> None:
    """Built from the released config on the meta device, the model has the released tensors and no other."""
    manifest = json.loads(gzip.decompress((GOLDEN / "wan21_14b_vap_manifest.json.gz").read_bytes()))
    with init_empty_weights():
        model = VideoAsPromptTransformer3DModel.from_config(manifest["config"])

    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}

    assert shapes == manifest["tensors"]
    assert sum(tensor.numel() for tensor in model.parameters()) == manifest["parameter_count"] == 20_674_265_664


@pytest.mark.parametrize("name", FOLDERS)
def test_what_the_reference_keeps_in_float32_stays_so(name: str) -> None:
    """Loaded in bfloat16, at least the reference's float32 parameters are float32; linear layers are cast."""
    model = load(name, torch.bfloat16)
    dtypes = {key: parameter.dtype for key, parameter in model.named_parameters()}

    kept = read_json(f"{name}_bf16_dtypes.json")["float32"]

    assert kept
    assert all(dtypes[key] == torch.float32 for key in kept)
    assert dtypes["blocks.1.attn1.to_q.weight"] == torch.bfloat16


def test_an_option_no_checkpoint_uses_is_refused() -> None:
    """A config that asks for what the network here lacks is refused instead of ignored."""
    with pytest.raises(ValueError, match="set these to null"):
        VideoAsPromptTransformer3DModel(num_layers=0, pos_embed_seq_len=514)
