"""What a video costs, by arithmetic: operations, weights and activations, from a model's configuration alone.

Nothing here knows a machine or loads a weight; `pipeline.hardware` turns these numbers into seconds and a fit.
Where a figure was counted rather than derived, the constant says how. Bytes are bytes, work is in FLOP (a multiply and
an add count as two).
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.errors import ModelError
from pipeline.spec import GenerationSpec

WeightFormat = Literal["float32", "bf16", "fp8", "int8", "nf4"]

# Bytes a weight of the transformer takes. int8: a scale for each row; nf4: blocks of 64 with a scale, scaled again.
BYTES_PER_WEIGHT: Mapping[WeightFormat, float] = {"float32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.517}

TEXT_ROWS = 512  # of a text in the cross-attention's context; shorter ones are folded, which saves little

# Live tensors of one row's tokens, (S, d), at the peak of a block with an expert, in the size of the computing format.
# Counted by running a guided step of the 14B's geometry on torch's meta device: 14.0 and 12.0.
ACTIVATION_TENSORS: Mapping[int, float] = {2: 14.5, 4: 12.5}
# For as long as a request runs: the reference's tokens and its part in the first joint attention.
KEPT_TENSORS = 4

# The Wan VAE in float32 with a base of 96 channels, counted in the same way: bytes for each pixel of a frame when a
# frame is coded whole, and the peak of a tile of 256 pixels, whatever the frame's size. Decoding needs more.
VAE_BASE_CHANNELS = 96
VAE_BYTES_PER_PIXEL = 19_600
VAE_TILE_BYTES = 1_420_000_000
# Its work for each pixel of each frame, and for how many weights that holds.
VAE_ENCODE_FLOP, VAE_DECODE_FLOP, VAE_WEIGHTS = 5.06e6, 8.53e6, 126_892_531
ENCODES = 3  # the start image, the reference's first frame, the reference


@dataclass(frozen=True)
class Workload:
    """What of a spec costs time and memory. Sizes in pixels as rendered; guided: two branches instead of one.

    guided_share: of the steps, the first ones, that are guided; the others have one branch.
    """

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guided: bool = True
    guided_share: float = 1.0

    @classmethod
    def of(cls, spec: GenerationSpec) -> Self:
        """Give a spec's workload."""
        size = (spec.render_height, spec.render_width, spec.num_frames)
        return cls(*size, spec.num_inference_steps, spec.guidance_scale > 1, spec.guided_share)

    @property
    def guided_steps(self) -> int:
        """Give how many steps are as costly as the first one."""
        return math.ceil(self.num_inference_steps * self.guided_share) if self.guided else self.num_inference_steps

    @property
    def branches(self) -> int:
        """Give how many rows go through the transformer together."""
        return 2 if self.guided else 1


@dataclass(frozen=True)
class Work:
    """The operations of one forward for one branch with nothing saved, in FLOP, by what they are spent on."""

    linear_target: float
    linear_reference: float
    self_attention: float
    joint_attention: float
    cross_attention: float

    @property
    def total(self) -> float:
        """Give all of it."""
        return sum((self.linear_target, self.linear_reference, self.attention, self.cross_attention))

    @property
    def attention(self) -> float:
        """Give the attention among tokens."""
        return self.self_attention + self.joint_attention


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model's parts. The defaults are those of the released 14B, from its configuration.

    experts: the blocks that hold an expert. encoders: weights of text encoder, image encoder and VAE.
    """

    layers: int = 40
    heads: int = 40
    head_dim: int = 128
    ffn_dim: int = 13_824
    experts: tuple[int, ...] = tuple(range(0, 40, 4))
    patch_size: tuple[int, int, int] = (1, 2, 2)
    in_channels: int = 36
    out_channels: int = 16
    text_dim: int = 4096
    image_dim: int = 1280
    added_kv_dim: int = 5120
    freq_dim: int = 256
    image_rows: int = 257
    text_vocabulary: int = 256_384
    vae_channels: int = VAE_BASE_CHANNELS
    vae_patch: int = 1
    spatial_stride: int = 8
    temporal_stride: int = 4
    encoders: Mapping[str, int] = field(
        default_factory=lambda: {
            "text_encoder": 5_680_910_336,
            "image_encoder": 630_766_080,
            "vae": VAE_WEIGHTS,
        }
    )

    @property
    def dim(self) -> int:
        """Give the width of a token, d."""
        return self.heads * self.head_dim

    @property
    def context_rows(self) -> int:
        """Give how many rows cross-attention reads."""
        return self.image_rows + TEXT_ROWS

    @property
    def block_weights(self) -> int:
        """Give the weights of one block, or of one expert."""
        d, f = self.dim, self.ffn_dim
        self_attention, feed_forward = 4 * _linear(d, d) + 2 * d, _linear(d, f) + _linear(f, d)
        cross_attention = 2 * _linear(d, d) + self.context_weights + 2 * d
        return self_attention + cross_attention + feed_forward + 2 * d + 6 * d

    @property
    def context_weights(self) -> int:
        """Give the weights of a block that make keys and values of texts and image: used once a request."""
        return 2 * _linear(self.dim, self.dim) + 2 * _linear(self.added_kv_dim, self.dim) + self.dim

    @property
    def embedder_weights(self) -> int:
        """Give the weights of one stream's embedder of time, text and image: used once a request."""
        d, image = self.dim, self.image_dim
        time = _linear(self.freq_dim, d) + _linear(d, d) + _linear(d, 6 * d)
        return (
            time
            + _linear(self.text_dim, d)
            + _linear(d, d)
            + _linear(image, image)
            + _linear(image, d)
            + 2 * image
            + 2 * d
        )

    @property
    def transformer_weights(self) -> int:
        """Give all weights of the transformer."""
        streams = self.layers + len(self.experts)
        patch = math.prod(self.patch_size)
        ends = 2 * _linear(patch * self.in_channels, self.dim) + _linear(self.dim, patch * self.out_channels)
        ends += 2 * self.dim
        return streams * self.block_weights + 2 * self.embedder_weights + ends

    @property
    def loop_weights(self) -> int:
        """Give the weights a denoising step reads: no embedders, no context projections, no dead ends.

        What becomes of the reference after the last joint attention nobody reads: there its query, output,
        cross-attention and feed-forward are dead.
        """
        d, f = self.dim, self.ffn_dim
        once = (self.layers + len(self.experts)) * self.context_weights + 2 * self.embedder_weights
        dead = 4 * _linear(d, d) + _linear(d, f) + _linear(f, d) if self.experts else 0
        return self.transformer_weights - once - dead

    @property
    def largest_layer(self) -> int:
        """Give the weights of the transformer's largest single layer."""
        return max(_linear(self.dim, self.ffn_dim), _linear(self.dim, 6 * self.dim))

    @property
    def largest_text_layer(self) -> int:
        """Give the weights of the text encoder's largest single layer, its vocabulary."""
        return self.text_vocabulary * self.text_dim

    def tokens(self, load: Workload) -> int:
        """Give the tokens S of one stream."""
        frames = (load.num_frames - 1) // self.temporal_stride + 1
        latents = (frames, load.height // self.spatial_stride, load.width // self.spatial_stride)
        return math.prod(size // patch for size, patch in zip(latents, self.patch_size, strict=True))


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def read_shape(folder: Path) -> ModelShape:
    """Read the sizes of a model from the configurations and file headers in its folder; no weight is read.

    Raises ModelError when one is missing or damaged.
    """
    try:
        transformer, text, image, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("transformer", "text_encoder", "image_encoder", "vae")
        )
        return ModelShape(
            layers=transformer["num_layers"],
            heads=transformer["num_attention_heads"],
            head_dim=transformer["attention_head_dim"],
            ffn_dim=transformer["ffn_dim"],
            experts=tuple(transformer["block_idx_with_mot_ref"]),
            patch_size=tuple(transformer["patch_size"]),
            in_channels=transformer["in_channels"],
            out_channels=transformer["out_channels"],
            text_dim=transformer["text_dim"],
            image_dim=transformer["image_dim"],
            added_kv_dim=transformer["added_kv_proj_dim"],
            freq_dim=transformer["freq_dim"],
            image_rows=(image["image_size"] // image["patch_size"]) ** 2 + 1,
            text_vocabulary=text["vocab_size"],
            vae_channels=vae.get("decoder_base_dim") or vae["base_dim"],
            vae_patch=vae.get("patch_size") or 1,
            spatial_stride=vae.get("scale_factor_spatial") or 8,
            temporal_stride=vae.get("scale_factor_temporal") or 4,
            encoders={part: count_weights(folder / part) for part in ("text_encoder", "image_encoder", "vae")},
        )
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"The model's sizes cannot be read from {folder}; fetch the model again.", "model") from error


def count_weights(folder: Path) -> int:
    """Count the weights in a part's safetensors files by their headers."""
    return sum(_count_in_file(path) for path in sorted(folder.glob("*.safetensors")))


def _count_in_file(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def forward_work(shape: ModelShape, tokens: int) -> Work:
    """Give the work of one forward of one branch as the reference implementation does it: everything, every step."""
    d, streams = shape.dim, shape.layers + len(shape.experts)
    plain = shape.layers - len(shape.experts)
    return Work(
        linear_target=shape.layers * _token_linears(shape, tokens),
        linear_reference=len(shape.experts) * _token_linears(shape, tokens),
        self_attention=plain * _attention(d, tokens, tokens),
        joint_attention=len(shape.experts) * _attention(d, 2 * tokens, 2 * tokens),
        cross_attention=streams * (_attention(d, tokens, shape.context_rows) + 2 * 2 * shape.context_rows * d * d),
    )


def step_flop(shape: ModelShape, load: Workload, *, split: bool = False) -> float:
    """Give the work of one step as our transformer does it. split: guidance branches run one after the other.

    Saved against `forward_work`: keys and values of the context; the dead ends of the last expert; until the first
    cross-attention, in block 0, the branches are one row, if not split; the reference's part in the first joint
    attention.
    """
    tokens, d = shape.tokens(load), shape.dim
    projection, total = 2 * tokens * d * d, 0.0
    for block in range(shape.layers):
        has_expert, last = block in shape.experts, block == max(shape.experts, default=-1)
        rows = 1 if block == 0 and not split else load.branches
        after = _token_linears(shape, tokens) - 4 * projection + _attention(d, tokens, shape.context_rows)
        total += rows * 4 * projection + load.branches * after
        if not has_expert:
            total += rows * _attention(d, tokens, tokens)
            continue
        total += rows * _attention(d, tokens if last else 2 * tokens, 2 * tokens)
        first = block == min(shape.experts)
        projected = 0 if first else 2 if last else 3
        total += rows * projected * projection + (0 if last else rows * projection + load.branches * after)
    return total


def _token_linears(shape: ModelShape, tokens: int) -> float:
    """Give a block's linear layers over the tokens: four of self-, two of cross-attention, two of the feed-forward."""
    return 2 * tokens * (6 * shape.dim**2 + 2 * shape.dim * shape.ffn_dim)


def _attention(dim: int, queries: int, keys: int) -> float:
    return 4.0 * queries * keys * dim


def coding_flop(shape: ModelShape, load: Workload) -> float:
    """Give the work outside the loop: texts, pictures, and the VAE in both directions."""
    texts = 2 * load.branches * TEXT_ROWS * 2 * (shape.encoders["text_encoder"] - shape.largest_text_layer)
    pictures = 2 * shape.image_rows * 2 * shape.encoders["image_encoder"]
    pixels = load.height * load.width * load.num_frames
    vae = pixels * (ENCODES * VAE_ENCODE_FLOP + VAE_DECODE_FLOP) * shape.encoders["vae"] / VAE_WEIGHTS
    return max(texts, 0) + pictures + vae


def exchange_bytes(shape: ModelShape, load: Workload, element_bytes: int, sharing: int) -> float:
    """Give what each of `sharing` processes sends to the others in a step, where they share attention out by heads.

    Query, key, value and result of its tokens, for the heads that are others': arXiv:2309.14509, section 3.
    """
    joined = shape.layers + len(shape.experts)  # a block with an expert exchanges two streams
    tokens_bytes = shape.tokens(load) / sharing * shape.dim * element_bytes
    return load.branches * joined * 4 * tokens_bytes * (1 - 1 / sharing)


def activation_bytes(
    shape: ModelShape, load: Workload, element_bytes: int, *, split: bool = False, sharing: int = 1
) -> float:
    """Give the memory beside the weights at the peak of a step.

    element_bytes: of the computing format, 2 or 4. split: guidance branches run one after the other.
    sharing: processes that hold a share of the tokens each; contexts are whole in all of them.
    """
    tokens_bytes = shape.tokens(load) / sharing * shape.dim * element_bytes
    context_rows = load.branches * TEXT_ROWS + shape.image_rows
    context = (shape.layers + len(shape.experts)) * 2 * context_rows * shape.dim * element_bytes
    rows = 1 if split else load.branches
    return (ACTIVATION_TENSORS[element_bytes] * rows + KEPT_TENSORS) * tokens_bytes + context


def vae_bytes(shape: ModelShape, load: Workload, *, tiled: bool) -> float:
    """Give the memory beside its weights that the VAE takes at its peak, frames included."""
    share = shape.vae_channels / VAE_BASE_CHANNELS
    clip = 3 * 4 * load.num_frames * load.height * load.width
    whole = VAE_BYTES_PER_PIXEL * share * load.height * load.width / shape.vae_patch**2
    # Tiles overlap by a quarter each way, and all of them are kept until they are put together.
    return min(VAE_TILE_BYTES * share, whole) + 4 * clip if tiled else whole + 2 * clip
