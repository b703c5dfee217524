"""The Wan2.1 image-to-video transformer with the Video-As-Prompt reference expert.

Two streams of tokens go through the blocks. The **target** is the noisy video being made; the **reference** is the
clean clip whose effect is wanted. Some blocks hold a second set of weights, the expert, for the reference, and join
both streams in one self-attention; all other blocks know the target only. Source: arXiv:2510.20888. The attributes
ending in `_mot_ref` are spelled as in the released checkpoint, so that its keys load without a map.

What does not change over the steps of a request is computed once, by `prepare`; each step then runs `forward` on it.
Both guidance branches go through the blocks as rows of one batch, so that each weight is read once a step. Until the
first cross-attention nothing depends on the texts: there the branches share their rows, which are repeated after it.

Shapes: B videos; R = B * branches rows, branch by branch; T, h, w latent frames, height, width;
S = T * (h / 2) * (w / 2) tokens of a stream; d = heads * head_dim.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.group_offloading import GroupOffloadingType
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanTimeTextImageEmbedding,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from pipeline.elementwise import add, add_gated, feed_forward, in_float32
from pipeline.joint_attention import (
    ContextAttnProcessor,
    ContextStates,
    JointAttnProcessor,
    ProjectedTokens,
    ReferenceAttention,
    project_contexts,
)
from pipeline.matrix_products import multiply_quickly

REFERENCE_TIMESTEP = 1  # the reference is never noised; training gave it the schedule's last timestep
ROTARY_THETA = 10_000.0


class StreamConditions(NamedTuple):
    """All that steers the target in a block besides its own tokens.

    contexts: of each guidance branch.
    time: (B or 1, 6, d), the block modulation before its table is added.
    """

    contexts: tuple[ContextStates, ...]
    time: Tensor
    rotary: Tensor


class ReferenceConditions(NamedTuple):
    """All that steers the reference in a block that has an expert.

    time: (1, 6, d), as the target's.
    contexts: None in the last such block: nobody reads what would become of the reference there.
    projected: its part in the joint attention, where that is constant over the steps.
    """

    time: Tensor
    rotary: Tensor
    contexts: tuple[ContextStates, ...] | None = None
    projected: ProjectedTokens | None = None


class TimeStates(NamedTuple):
    """Embedded timesteps: temb (n, d) for the read-out, modulation (n, 6, d) for the blocks."""

    temb: Tensor
    modulation: Tensor

    def at(self, index: int) -> "TimeStates":
        """Give one timestep's states, for all rows."""
        return TimeStates(self.temb[index : index + 1], self.modulation[index : index + 1])


class RequestStates(NamedTuple):
    """What is constant over the steps of a request.

    times: of all its timesteps.
    reference_tokens: (B or 1, S, d), embedded.
    contexts: the target's, block by block, of each guidance branch.
    references: the reference's conditions, block by block; None where the block has no expert.
    """

    times: TimeStates
    reference_tokens: Tensor
    rotary: Tensor
    contexts: tuple[tuple[ContextStates, ...], ...]
    references: tuple[ReferenceConditions | None, ...]

    def branch(self, index: int) -> "RequestStates":
        """Give the same request with one of its guidance branches alone."""
        only = slice(index, index + 1)
        references = (
            reference and reference._replace(contexts=reference.contexts and reference.contexts[only])
            for reference in self.references
        )
        return self._replace(contexts=tuple(each[only] for each in self.contexts), references=tuple(references))


class RotaryEmbedding(nn.Module):
    """Rotary tables for a latent grid. A head's numbers are shared out as 2 * (head_dim // 6) each to rows and columns
    and the rest to time; each axis has its own frequencies, theta^(-2i/n).
    """

    def __init__(self, head_dim: int, precedes_target: bool = False) -> None:
        super().__init__()
        across = 2 * (head_dim // 6)
        self.axis_dims = (head_dim - 2 * across, across, across)
        self.precedes_target = precedes_target

    def forward(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """Give the table of a grid of (frames, rows, columns) tokens: e^(i angle), (1, S, 1, head_dim / 2), complex64.

        The target's frames stand at 0, 1, ...; the reference's at -frames, ..., -1, just before them, on the same rows
        and columns.
        """
        starts = (-grid[0] if self.precedes_target else 0, 0, 0)
        angles = []
        for axis, (start, length, dim) in enumerate(zip(starts, grid, self.axis_dims, strict=True)):
            # float64 on the CPU: MPS has no float64, and these few numbers cost nothing there
            positions = torch.arange(start, start + length, dtype=torch.float64, device="cpu")
            frequencies = ROTARY_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
            shape = [1, 1, 1, -1]
            shape[axis] = length
            angles.append(torch.outer(positions, frequencies).view(shape).expand(*grid, -1))
        table = torch.cat(angles, dim=-1).view(1, math.prod(grid), 1, -1)
        return torch.polar(torch.ones_like(table), table).to(torch.complex64).to(device)


class VideoAsPromptBlock(WanTransformerBlock):
    """A stock Wan block; with an expert, it carries the reference stream along through a second set of weights."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        qk_norm: str,
        cross_attn_norm: bool,
        eps: float,
        added_kv_proj_dim: int | None,
        has_expert: bool,
    ) -> None:
        sizes = (dim, ffn_dim, num_heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim)
        super().__init__(*sizes)
        self.has_expert = has_expert
        self.attn1.set_processor(JointAttnProcessor())
        self.attn2.set_processor(ContextAttnProcessor())
        if has_expert:
            expert = WanTransformerBlock(*sizes)
            expert.attn2.set_processor(ContextAttnProcessor())
            for name in ("norm1", "attn1", "norm2", "attn2", "norm3", "ffn"):
                self.add_module(f"{name}_mot_ref", getattr(expert, name))
            self.scale_shift_table_mot_ref = expert.scale_shift_table

    def forward(
        self,
        hidden_states: Tensor,
        reference_hidden_states: Tensor,
        target: StreamConditions,
        reference: ReferenceConditions | None,
    ) -> tuple[Tensor, Tensor]:
        """Take the target (R, S, d) and the reference, both maybe still (B, S, d), one block further.

        Without an expert, and in the last block that has one, the reference stays as it is.
        """
        hidden_states, reference_hidden_states = self._attend_jointly(
            hidden_states, reference_hidden_states, target, reference
        )
        if reference is not None and reference.contexts is not None:
            reference_hidden_states = _attend_contexts(
                self.norm2_mot_ref, self.attn2_mot_ref, reference_hidden_states, reference.contexts
            )
            modulation = _modulation(self.scale_shift_table_mot_ref, reference.time)[3:]
            reference_hidden_states = _feed_forward(
                self.norm3_mot_ref, self.ffn_mot_ref, reference_hidden_states, modulation
            )
        hidden_states = _attend_contexts(self.norm2, self.attn2, hidden_states, target.contexts)
        modulation = _modulation(self.scale_shift_table, target.time)[3:]
        return _feed_forward(self.norm3, self.ffn, hidden_states, modulation), reference_hidden_states

    # A method of its own, so that what it needs on its way is free again when the rest begins.
    def _attend_jointly(
        self,
        hidden_states: Tensor,
        reference_hidden_states: Tensor,
        target: StreamConditions,
        reference: ReferenceConditions | None,
    ) -> tuple[Tensor, Tensor]:
        """Add to both streams what self-attention gives."""
        shift, scale, gate, *_ = _modulation(self.scale_shift_table, target.time)
        modulated = _modulate(self.norm1, hidden_states, shift, scale)
        if reference is None:
            attended = self.attn1(modulated, None, None, target.rotary)
        else:
            joint = self.join_reference(reference_hidden_states, reference)
            attended = self.attn1(modulated, None, None, target.rotary, reference=joint)
            if joint.asks:
                attended, ref_attended = attended
                _, _, ref_gate, *_ = _modulation(self.scale_shift_table_mot_ref, reference.time)
                reference_hidden_states = add_gated(reference_hidden_states, ref_attended, ref_gate)
        return add_gated(hidden_states, attended, gate), reference_hidden_states

    def join_reference(self, reference_hidden_states: Tensor, reference: ReferenceConditions) -> ReferenceAttention:
        """Give the part of the reference, (B, S, d), in the joint attention."""
        modulated = reference_hidden_states
        if reference.projected is None:
            shift, scale, *_ = _modulation(self.scale_shift_table_mot_ref, reference.time)
            modulated = _modulate(self.norm1_mot_ref, reference_hidden_states, shift, scale)
        asks = reference.contexts is not None
        return ReferenceAttention(self.attn1_mot_ref, modulated, reference.rotary, asks, reference.projected)

    def project_reference(self, reference_hidden_states: Tensor, reference: ReferenceConditions) -> ProjectedTokens:
        """Give that part projected."""
        joint = self.join_reference(reference_hidden_states, reference)
        query = joint.project("query") if joint.asks else None
        return ProjectedTokens(query, joint.project("key"), joint.project("value"))


# For diffusers' caches (`enable_cache`): a skipped block hands both streams on as they came.
TransformerBlockRegistry.register(
    VideoAsPromptBlock,
    TransformerBlockMetadata(
        return_hidden_states_index=0,
        return_encoder_hidden_states_index=1,
        _cached_parameter_indices={"hidden_states": 0, "encoder_hidden_states": 1},  # ours is called the reference's
    ),
)


# Norms, modulation, gates and the residual sums of self-attention and feed-forward run in float32, whatever the
# weights' type, and return to it after each; only cross-attention's residual is added in the weights' type.


def _modulation(table: Tensor, time: Tensor) -> tuple[Tensor, ...]:
    return (table + time.float()).chunk(6, dim=1)


def _modulate(norm: nn.LayerNorm, states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    if len(scale) > 1:  # rows at timesteps of their own, as in training
        return torch.addcmul(shift, norm(states.float()), 1 + scale).type_as(states)
    # the norm has no weights of its own, so the modulation takes their place: one pass over the states
    weight, bias = (1 + scale).flatten(), shift.flatten()
    return in_float32(lambda tokens: F.layer_norm(tokens, norm.normalized_shape, weight, bias, norm.eps), states)


def _attend_contexts(
    norm: nn.Module, attn: WanAttention, states: Tensor, contexts: tuple[ContextStates, ...]
) -> Tensor:
    rows = sum(len(context.text_key) for context in contexts)
    if len(states) != rows:  # from here on the guidance branches differ
        states = states.repeat(rows // len(states), 1, 1)
    return add(states, attn(in_float32(norm, states), contexts))


def _feed_forward(norm: nn.LayerNorm, ffn: nn.Module, states: Tensor, modulation: Sequence[Tensor]) -> Tensor:
    shift, scale, gate = modulation
    return add_gated(states, feed_forward(ffn, _modulate(norm, states, shift, scale)), gate)


def _embed_conditions(
    embedder: nn.Module, timesteps: Tensor, texts: Sequence[Tensor], image: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Embed timesteps, texts and image; all texts in one call, since rows do not depend on each other."""
    temb, time, text, image = embedder(timesteps, torch.cat(list(texts), dim=1), image)
    return temb, time, text.split([len(each[0]) for each in texts], dim=1), image


@contextmanager
def _brought(module: nn.Module) -> Iterator[None]:
    """Have a module's weights on the device while its parts are called past it, as they are while it is called itself.

    Only block-level group offload of diffusers needs this: layers that are fetched one by one come as they are called.
    """
    registry: Any = getattr(module, "_diffusers_hook", None)
    hook = registry and registry.get_hook("group_offloading")
    if hook is None or hook.config.offload_type != GroupOffloadingType.BLOCK_LEVEL:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def _split_tokens(expected_dims: int) -> ContextParallelInput:
    return ContextParallelInput(split_dim=1, expected_dims=expected_dims, split_output=True)


class VideoAsPromptTransformer3DModel(WanTransformer3DModel):
    """Stock `WanTransformer3DModel` plus the reference stream, with its own embedders.

    block_idx_with_mot_ref: the blocks that hold an expert. The other arguments are the stock model's.

    The last four arguments stand in the released config, always null; a value other than null is refused.
    """

    _no_split_modules: ClassVar = ["VideoAsPromptBlock"]
    _repeated_blocks: ClassVar = ["VideoAsPromptBlock"]
    # The reference implementation leaves the two `_mot_ref` names in the weights' type, most likely unintended.
    _keep_in_fp32_modules: ClassVar = [
        *WanTransformer3DModel._keep_in_fp32_modules,
        "scale_shift_table_mot_ref",
        "norm2_mot_ref",
    ]
    # Tokens of both streams and their rotations are dealt out once each, as they are made; contexts stay whole. All
    # ranks together hold all tokens of both streams, so the joint attention comes out right.
    _cp_plan: ClassVar = {
        "rope": {0: _split_tokens(expected_dims=4)},
        "rope_mot_ref": {0: _split_tokens(expected_dims=4)},
        "token_split": {0: _split_tokens(expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int = 1280,
        added_kv_proj_dim: int = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: None = None,
        block_idx_with_mot_ref: Sequence[int] = (0, 4, 8, 12, 16, 20, 24, 28, 32, 36),
        attention_head_dim_mot_ref: None = None,
        supported_effect_types: None = None,
        num_ref_embeddings: None = None,
        reference_train_mode: None = None,
    ) -> None:
        unknown = (attention_head_dim_mot_ref, supported_effect_types, num_ref_embeddings, reference_train_mode)
        if any(value is not None for value in (*unknown, pos_embed_seq_len)):
            raise ValueError(
                "This transformer config uses an option of the reference implementation that no released checkpoint "
                "uses (position embedding of images, reference head size, effect types, reference embeddings or "
                "reference training mode); set these to null."
            )
        # The stock constructor builds the blocks; ours take their place, so it is asked for none.
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=0,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
        )
        self.register_to_config(num_layers=num_layers, block_idx_with_mot_ref=list(block_idx_with_mot_ref))
        dim = num_attention_heads * attention_head_dim
        self.rope = RotaryEmbedding(attention_head_dim)
        self.rope_mot_ref = RotaryEmbedding(attention_head_dim, precedes_target=True)
        self.token_split = nn.Identity()  # where context parallelism deals the tokens out
        self.patch_embedding_mot_ref = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.condition_embedder_mot_ref = WanTimeTextImageEmbedding(
            dim=dim,
            time_freq_dim=freq_dim,
            time_proj_dim=dim * 6,
            text_embed_dim=text_dim,
            image_embed_dim=image_dim,
        )
        self.blocks = nn.ModuleList(
            VideoAsPromptBlock(
                dim,
                ffn_dim,
                num_attention_heads,
                qk_norm,
                cross_attn_norm,
                eps,
                added_kv_proj_dim,
                has_expert=index in block_idx_with_mot_ref,
            )
            for index in range(num_layers)
        )
        multiply_quickly(self)

    @apply_forward_hook  # model offload brings the weights to the device before `forward`; this comes earlier
    @apply_lora_scale("attention_kwargs")
    def prepare(
        self,
        timesteps: Tensor,
        encoder_hidden_states: Sequence[Tensor],
        encoder_hidden_states_image: Tensor,
        reference_hidden_states: Tensor,
        reference_encoder_hidden_states: Sequence[Tensor],
        reference_encoder_hidden_states_image: Tensor,
        text_row_counts: Sequence[Tensor] | None = None,
        reference_text_row_counts: Sequence[Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> RequestStates:
        """Compute all that is constant over the steps of a request.

        timesteps: (n,), of the steps to come, on the scale 0 to 1000.
        encoder_hidden_states: the text encoder's states, (B, n, text_dim) of each guidance branch; n may differ.
        encoder_hidden_states_image: (B or 1, m, image_dim), the image encoder's.
        reference_hidden_states: (B or 1, in_channels, T, h, w), clean latents, mask and condition latents.
        reference_encoder_hidden_states*: as the target's. The reference's timestep is a constant of the model.
        text_row_counts, reference_text_row_counts: (B, n) of each branch, how many equal rows each text row stands
            for, as `fold_padding` gives them; 0 hides a row; None counts each row once.
        attention_kwargs: {"scale": float}, the strength of loaded LoRAs.
        """
        device = reference_hidden_states.device
        grid = self._grid(reference_hidden_states)
        rotary, reference_rotary = self.rope(grid, device), self.rope_mot_ref(grid, device)
        with _brought(self):
            temb, time, text, image = _embed_conditions(
                self.condition_embedder, timesteps, encoder_hidden_states, encoder_hidden_states_image
            )
            _, reference_time, reference_text, reference_image = _embed_conditions(
                self.condition_embedder_mot_ref,
                torch.full((1,), REFERENCE_TIMESTEP, device=device),
                reference_encoder_hidden_states,
                reference_encoder_hidden_states_image,
            )
            reference_tokens = self._embed_tokens(self.patch_embedding_mot_ref, reference_hidden_states)
        bias, reference_bias = (
            [None] * len(text) if counts is None else [rows.log()[:, None, None, :] for rows in counts]
            for counts in (text_row_counts, reference_text_row_counts)
        )
        reference = ReferenceConditions(reference_time.unflatten(1, (6, -1)), reference_rotary)
        blocks = cast(list[VideoAsPromptBlock], list(self.blocks))
        experts = [index for index, block in enumerate(blocks) if block.has_expert]
        references: list[ReferenceConditions | None] = [None] * len(blocks)
        contexts: list[tuple[ContextStates, ...]] = []
        for index, block in enumerate(blocks):
            with _brought(block):
                contexts.append(project_contexts(block.attn2, text, image, bias))
                if not block.has_expert:
                    continue
                conditions = reference
                if index != experts[-1]:
                    conditions = conditions._replace(
                        contexts=project_contexts(block.attn2_mot_ref, reference_text, reference_image, reference_bias)
                    )
                if index == experts[0]:  # its tokens are the embedded ones, in every step
                    projected = block.project_reference(reference_tokens, conditions)
                    conditions = conditions._replace(projected=projected)
                references[index] = conditions
        return RequestStates(
            times=TimeStates(temb, time.unflatten(1, (6, -1))),
            reference_tokens=reference_tokens,
            rotary=rotary,
            contexts=tuple(contexts),
            references=tuple(references),
        )

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        time: TimeStates,
        request: RequestStates,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Predict the flow velocity of the target.

        hidden_states: (B, in_channels, T, h, w); noisy latents, mask, condition latents along the channels.
        time: of this step, for all rows, or with a row of its own for each video where there is but one branch.
        request: from `prepare`, for the same size.
        attention_kwargs: as for `prepare`.
        Returns (R, out_channels, T, h, w).
        """
        tokens, reference_tokens = self._embed_tokens(self.patch_embedding, hidden_states), request.reference_tokens
        for block, contexts, reference in zip(self.blocks, request.contexts, request.references, strict=True):
            target = StreamConditions(contexts, time.modulation, request.rotary)
            tokens, reference_tokens = block(tokens, reference_tokens, target, reference)
        return self._read_out(tokens, time.temb, self._grid(hidden_states))

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Give how many tokens latents (B, channels, T, h, w) have along time, rows and columns."""
        frames, rows, columns = (
            size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)
        )
        return frames, rows, columns

    def _embed_tokens(self, patch_embedding: nn.Module, latents: Tensor) -> Tensor:
        """Embed latents (B, channels, T, h, w) as tokens (B, S, d); of S, under context parallelism, this rank's."""
        return self.token_split(patch_embedding(latents).flatten(2).transpose(1, 2).contiguous())

    def _read_out(self, tokens: Tensor, temb: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Turn the target's tokens (B, S, d) into (B, out_channels, T, h, w)."""
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        patches = self.proj_out(_modulate(self.norm_out, tokens, shift, scale))
        patches = patches.unflatten(1, grid).unflatten(-1, (*self.config.patch_size, -1))
        # (B, frames, rows, columns, patch frames, patch rows, patch columns, channels) -> channels first, axes paired
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
