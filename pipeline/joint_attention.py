"""The attentions of a block: of both streams among each other, and of a stream to its text and image.

Shapes as in `pipeline.transformer`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor

from pipeline.elementwise import add, normalise, normalise_and_rotate
from pipeline.matrix_products import attend


class ProjectedTokens(NamedTuple):
    """What self-attention reads of a stream, (B, S, heads, head_dim) each; query is None where nobody asks."""

    query: Tensor | None
    key: Tensor
    value: Tensor


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

    def project(self, part: str) -> Tensor:
        """Give the query, key or value of its tokens."""
        if self.projected is not None:
            return getattr(self.projected, part)
        return project_tokens(part, self.attn, self.states, self.rotary)


class ContextStates(NamedTuple):
    """What a block's cross-attention reads in one guidance branch.

    Keys and values of text (B, n, heads, head_dim) and image (B or 1, m, heads, head_dim).
    text_bias: (B, 1, 1, n), added to the text's attention logits, or None. See `fold_padding`.
    """

    text_key: Tensor
    text_value: Tensor
    image_key: Tensor
    image_value: Tensor
    text_bias: Tensor | None


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


def project_tokens(part: str, attn: WanAttention, states: Tensor, rotary: Tensor) -> Tensor:
    """Give the "query", "key" or "value" of tokens (B, S, d) in a self-attention, (B, S, heads, head_dim)."""
    if part == "value":
        return attn.to_v(states).unflatten(2, (attn.heads, -1))
    projection, norm = (attn.to_q, attn.norm_q) if part == "query" else (attn.to_k, attn.norm_k)
    return normalise_and_rotate(norm, projection(states), attn.heads, rotary)


def project_contexts(
    attn: WanAttention, texts: Sequence[Tensor], image: Tensor, text_biases: Sequence[Tensor | None]
) -> tuple[ContextStates, ...]:
    """Project embedded texts, (B, n, d) of each guidance branch, and image (B or 1, m, d) for a cross-attention."""
    heads = (attn.heads, -1)
    image_key = attn.norm_added_k(attn.add_k_proj(image)).unflatten(2, heads)
    image_value = attn.add_v_proj(image).unflatten(2, heads)
    lengths, rows = [text.shape[1] for text in texts], torch.cat(list(texts), dim=1)
    keys = attn.norm_k(attn.to_k(rows)).unflatten(2, heads).split(lengths, dim=1)
    values = attn.to_v(rows).unflatten(2, heads).split(lengths, dim=1)
    return tuple(
        ContextStates(key, value, image_key, image_value, bias)
        for key, value, bias in zip(keys, values, text_biases, strict=True)
    )


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
            target = project_tokens(part, attn, hidden_states, rotary_emb)
            return target if reference is None else _join(target, reference.project(part))

        # One softmax over both streams: each sees the other. They ask one after the other, which takes less memory.
        queries = [project_tokens("query", attn, hidden_states, rotary_emb)]
        if reference is not None and reference.asks:
            queries.append(_for_rows(reference.project("query"), queries[0]))
        key, value = project("key"), project("value")
        attended = _project_out(attn, self._attend(queries.pop(0), key, value))
        if reference is None or not queries:
            return attended
        return attended, _project_out(reference.attn, self._attend(queries.pop(), key, value))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config)


class ContextAttnProcessor:
    """Cross-attention: one query, two sets of keys and values (text, image) whose results are added."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Sequence[ContextStates],
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """Attend from (R, S, d) to the contexts of all guidance branches, giving (R, S, d)."""
        query = normalise(attn.norm_q, attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        branches = query.chunk(len(encoder_hidden_states))
        attended = [self._attend(*branch) for branch in zip(branches, encoder_hidden_states, strict=True)]
        return _project_out(attn, attended[0] if len(attended) == 1 else torch.cat(attended))

    def _attend(self, query: Tensor, context: ContextStates) -> Tensor:
        # Few other backends take an additive bias, and this attention is 2 % of the work.
        text_backend = self._attention_backend if context.text_bias is None else AttentionBackendName.NATIVE
        text = attend(query, context.text_key, context.text_value, context.text_bias, text_backend)
        image = attend(
            query,
            _for_rows(context.image_key, query),
            _for_rows(context.image_value, query),
            backend=self._attention_backend,
        )
        return add(image.type_as(query), text.type_as(query))


def _for_rows(states: Tensor, like: Tensor) -> Tensor:
    """Show states (1 or R, ...) to every row of another tensor."""
    return states.expand(len(like), *states.shape[1:])


def _join(target: Tensor, reference: Tensor) -> Tensor:
    return torch.cat([target, _for_rows(reference, target)], dim=1)


def _project_out(attn: WanAttention, attended: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](attended.flatten(2, 3)))
