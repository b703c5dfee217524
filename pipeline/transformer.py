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
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanTimeTextImageEmbedding,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from pipeline.elementwise import feed_forward, normalise, normalise_and_rotate

REFERENCE_TIMESTEP = 1  # the reference is never noised; training gave it the schedule's last timestep
ROTARY_THETA = 10_000.0


class ProjectedTokens(NamedTuple):
    """What self-attention reads of a stream, (B, S, heads, head_dim) each; query is None where nobody asks."""

    query: Tensor | None
    key: Tensor
    value: Tensor


class ContextStates(NamedTuple):
    """What a block's cross-attention reads: keys and values of text (R, n, heads, head_dim) and image (R, m, ...).

    text_bias: (R, 1, 1, n), added to the text's attention logits, or None. See `fold_padding`.
    """

    text_key: Tensor
    text_value: Tensor
    image_key: Tensor
    image_value: Tensor
    text_bias: Tensor | None


class StreamConditions(NamedTuple):
    """All that steers the target in a block besides its own tokens.

    time: (R or 1, 6, d), the block modulation before its table is added.
    """

    context: ContextStates
    time: Tensor
    rotary: Tensor


class ReferenceConditions(NamedTuple):
    """All that steers the reference in a block that has an expert.

    time: (1, 6, d), as the target's.
    context: None in the last such block: nobody reads what would become of the reference there.
    projected: its part in the joint attention, where that is constant over the steps.
    """

    time: Tensor
    rotary: Tensor
    context: ContextStates | None = None
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
    contexts: the target's, block by block.
    references: the reference's conditions, block by block; None where the block has no expert.
    """

    times: TimeStates
    reference_tokens: Tensor
    rotary: Tensor
    contexts: tuple[ContextStates, ...]
    references: tuple[ReferenceConditions | None, ...]

    def rows(self, start: int, stop: int) -> "RequestStates":
        """Give the same request for some of its rows alone, such as those of one guidance branch."""
        references = (
            reference and reference._replace(context=reference.context and _rows(reference.context, start, stop))
            for reference in self.references
        )
        contexts = tuple(_rows(context, start, stop) for context in self.contexts)
        return self._replace(contexts=contexts, references=tuple(references))


def _rows(context: ContextStates, start: int, stop: int) -> ContextStates:
    bias = context.text_bias
    one_image = len(context.image_key) == 1  # for all rows
    image_rows = slice(None) if one_image else slice(start, stop)
    return ContextStates(
        context.text_key[start:stop],
        context.text_value[start:stop],
        context.image_key[image_rows],
        context.image_value[image_rows],
        None if bias is None else bias[start:stop],
    )


class ReferenceAttention(NamedTuple):
    """The reference's part in a joint attention: the expert's attention, and its tokens (B, S, d) as that reads them.

    asks: whether its tokens attend too.
    projected: of those tokens, where that is known.
    """

    attn: WanAttention
    states: Tensor
    rotary: Tensor
    asks: bool
    projected: ProjectedTokens | None


def fold_padding(text_states: Tensor, total_rows: int) -> tuple[Tensor, Tensor]:
    """Stand in for the zero rows that pad a text to `total_rows` by a single one, counted that many times.

    Equal rows give equal keys and values, so m of them weigh in a softmax like one with log(m) added to its logit.
    text_states: (B, n, text_dim) without padding, n <= total_rows.
    Returns the states (B, n + 1, text_dim) and the row counts (B, n + 1) that
    `VideoAsPromptTransformer3DModel.prepare` takes.
    """
    batch, rows, width = text_states.shape
    states = torch.cat([text_states, text_states.new_zeros(batch, 1, width)], dim=1)
    counts = torch.ones(batch, rows + 1, device=text_states.device)
    counts[:, -1] = total_rows - rows
    return states, counts


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


class JointAttnProcessor:
    """Self-attention of the target, joined with the reference's where one is given."""

    _attention_backend: Any = None  # diffusers' `set_attention_backend` and `enable_parallelism` write these two
    _parallel_config: Any = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: Tensor,
        reference: ReferenceAttention | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from (B, S, d) to (B, S, d); with a reference that asks too, give the pair (target, reference)."""

        def project(part: str) -> Tensor:
            target = _project(part, attn, hidden_states, rotary_emb)
            if reference is None or (part == "query" and not reference.asks):
                return target
            return _join(target, _project_reference(part, reference))

        # One softmax over both streams: each sees the other. Tokens are dimension 1. One part after the other, none of
        # them kept, so that both streams are never held twice.
        attended = self._attend(project("query"), project("key"), project("value"))
        if reference is None or not reference.asks:
            return _project_out(attn, attended)
        target_attended, reference_attended = attended.split(hidden_states.shape[1], dim=1)
        return _project_out(attn, target_attended), _project_out(reference.attn, reference_attended)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )


class ContextAttnProcessor:
    """Cross-attention: one query, two sets of keys and values (text, image) whose results are added."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: ContextStates,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """Attend from (R, S, d) to a context, giving (R, S, d)."""
        context = encoder_hidden_states
        query = normalise(attn.norm_q, attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        # Few other backends take an additive bias, and this attention is 2 % of the work.
        text_backend = self._attention_backend if context.text_bias is None else AttentionBackendName.NATIVE
        text = dispatch_attention_fn(
            query, context.text_key, context.text_value, attn_mask=_like(context.text_bias, query), backend=text_backend
        )
        image = dispatch_attention_fn(
            query,
            _for_rows(context.image_key, query),
            _for_rows(context.image_value, query),
            backend=self._attention_backend,
        )
        return _project_out(attn, text.type_as(query) + image.type_as(query))


def project_context(attn: WanAttention, text: Tensor, image: Tensor, text_bias: Tensor | None) -> ContextStates:
    """Project embedded text (R, n, d) and image (R or 1, m, d) for a cross-attention."""
    heads = (attn.heads, -1)
    return ContextStates(
        text_key=attn.norm_k(attn.to_k(text)).unflatten(2, heads),
        text_value=attn.to_v(text).unflatten(2, heads),
        image_key=attn.norm_added_k(attn.add_k_proj(image)).unflatten(2, heads),
        image_value=attn.add_v_proj(image).unflatten(2, heads),
        text_bias=text_bias,
    )


def _project(part: str, attn: WanAttention, states: Tensor, rotary: Tensor) -> Tensor:
    """Give the query, key or value of tokens (B, S, d)."""
    if part == "value":
        return attn.to_v(states).unflatten(2, (attn.heads, -1))
    projection, norm = (attn.to_q, attn.norm_q) if part == "query" else (attn.to_k, attn.norm_k)
    return normalise_and_rotate(norm, projection(states), attn.heads, rotary)


def _project_reference(part: str, reference: ReferenceAttention) -> Tensor:
    if reference.projected is not None:
        return getattr(reference.projected, part)
    return _project(part, reference.attn, reference.states, reference.rotary)


def _for_rows(states: Tensor, like: Tensor) -> Tensor:
    """Show states (1 or R, ...) to every row of another tensor."""
    return states.expand(len(like), *states.shape[1:])


def _join(target: Tensor, reference: Tensor) -> Tensor:
    return torch.cat([target, _for_rows(reference, target)], dim=1)


def _project_out(attn: WanAttention, attended: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](attended.flatten(2, 3)))


def _like(bias: Tensor | None, states: Tensor) -> Tensor | None:
    return None if bias is None else bias.type_as(states)


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
        if reference is not None and reference.context is not None:
            reference_hidden_states = _attend_context(
                self.norm2_mot_ref, self.attn2_mot_ref, reference_hidden_states, reference.context
            )
            modulation = _modulation(self.scale_shift_table_mot_ref, reference.time)[3:]
            reference_hidden_states = _feed_forward(
                self.norm3_mot_ref, self.ffn_mot_ref, reference_hidden_states, modulation
            )
        hidden_states = _attend_context(self.norm2, self.attn2, hidden_states, target.context)
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
                reference_hidden_states = _add_gated(reference_hidden_states, ref_attended, ref_gate)
        return _add_gated(hidden_states, attended, gate), reference_hidden_states

    def join_reference(self, reference_hidden_states: Tensor, reference: ReferenceConditions) -> ReferenceAttention:
        """Give the part of the reference, (B, S, d), in the joint attention."""
        modulated = reference_hidden_states
        if reference.projected is None:
            shift, scale, *_ = _modulation(self.scale_shift_table_mot_ref, reference.time)
            modulated = _modulate(self.norm1_mot_ref, reference_hidden_states, shift, scale)
        asks = reference.context is not None
        return ReferenceAttention(self.attn1_mot_ref, modulated, reference.rotary, asks, reference.projected)

    def project_reference(self, reference_hidden_states: Tensor, reference: ReferenceConditions) -> ProjectedTokens:
        """Give that part projected."""
        joint = self.join_reference(reference_hidden_states, reference)
        query = _project_reference("query", joint) if joint.asks else None
        return ProjectedTokens(query, _project_reference("key", joint), _project_reference("value", joint))


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
    modulation = ((1 + scale).flatten(), shift.flatten())
    return F.layer_norm(states.float(), norm.normalized_shape, *modulation, norm.eps).type_as(states)


def _add_gated(states: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(states.float(), update.float(), gate).type_as(states)


def _attend_context(norm: nn.Module, attn: WanAttention, states: Tensor, context: ContextStates) -> Tensor:
    rows = len(context.text_key)
    if len(states) != rows:  # from here on the guidance branches differ
        states = states.repeat(rows // len(states), 1, 1)
    return states + attn(norm(states.float()).type_as(states), context)


def _feed_forward(norm: nn.LayerNorm, ffn: nn.Module, states: Tensor, modulation: Sequence[Tensor]) -> Tensor:
    shift, scale, gate = modulation
    return _add_gated(states, feed_forward(ffn, _modulate(norm, states, shift, scale)), gate)


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

    @apply_forward_hook  # model offload brings the weights to the device before `forward`; this comes earlier
    @apply_lora_scale("attention_kwargs")
    def prepare(
        self,
        timesteps: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor,
        reference_hidden_states: Tensor,
        reference_encoder_hidden_states: Tensor,
        reference_encoder_hidden_states_image: Tensor,
        text_row_counts: Tensor | None = None,
        reference_text_row_counts: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> RequestStates:
        """Compute all that is constant over the steps of a request.

        timesteps: (n,), of the steps to come, on the scale 0 to 1000.
        encoder_hidden_states: (R, n, text_dim), the text encoder's states.
        encoder_hidden_states_image: (R or 1, m, image_dim), the image encoder's.
        reference_hidden_states: (B or 1, in_channels, T, h, w), clean latents, mask and condition latents.
        reference_encoder_hidden_states*: as the target's. The reference's timestep is a constant of the model.
        text_row_counts, reference_text_row_counts: (R, n), how many equal rows each text row stands for, as
            `fold_padding` gives them; 0 hides a row; None counts each row once.
        attention_kwargs: {"scale": float}, the strength of loaded LoRAs.
        """
        device = reference_hidden_states.device
        grid = self._grid(reference_hidden_states)
        rotary, reference_rotary = self.rope(grid, device), self.rope_mot_ref(grid, device)
        temb, time, text, image = self.condition_embedder(timesteps, encoder_hidden_states, encoder_hidden_states_image)
        _, reference_time, reference_text, reference_image = self.condition_embedder_mot_ref(
            torch.full((1,), REFERENCE_TIMESTEP, device=device),
            reference_encoder_hidden_states,
            reference_encoder_hidden_states_image,
        )
        bias, reference_bias = (
            None if counts is None else counts.log()[:, None, None, :]
            for counts in (text_row_counts, reference_text_row_counts)
        )
        reference_tokens = self._embed_tokens(self.patch_embedding_mot_ref, reference_hidden_states)
        reference = ReferenceConditions(reference_time.unflatten(1, (6, -1)), reference_rotary)
        blocks = cast(list[VideoAsPromptBlock], list(self.blocks))
        experts = [index for index, block in enumerate(blocks) if block.has_expert]
        references: list[ReferenceConditions | None] = [None] * len(blocks)
        for index in experts:
            block, conditions = blocks[index], reference
            if index != experts[-1]:
                context = project_context(block.attn2_mot_ref, reference_text, reference_image, reference_bias)
                conditions = conditions._replace(context=context)
            if index == experts[0]:  # its tokens are the embedded ones, in every step
                conditions = conditions._replace(projected=block.project_reference(reference_tokens, conditions))
            references[index] = conditions
        return RequestStates(
            times=TimeStates(temb, time.unflatten(1, (6, -1))),
            reference_tokens=reference_tokens,
            rotary=rotary,
            contexts=tuple(project_context(block.attn2, text, image, bias) for block in blocks),
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
        for block, context, reference in zip(self.blocks, request.contexts, request.references, strict=True):
            target = StreamConditions(context, time.modulation, request.rotary)
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
