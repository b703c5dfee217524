"""What the denoiser is asked besides the video: where its tokens are, what happens, and where each picture part was.

A movement that is only nearly right makes no video better, so the error in the video teaches movement late. These
answers can be nearly right. None of this is part of nano.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from pipeline.joint_attention import project_tokens
from pipeline.transformer import RequestStates, VideoAsPromptBlock, VideoAsPromptTransformer3DModel
from training.components import EXPERT_BLOCKS, FETCHING, FETCHING_AGAIN, TRACKING, WIDTH
from training.effects import DESCRIPTION, description_weights

PLACED_AFTER = 1  # the block after which tokens are to know their place
# What a mere mean costs is brought to about one by these.
COVER_VARIANCE = 0.09
OFFSET_VARIANCE = 0.1
PLACE_VARIANCE = 0.3
FETCH_WEIGHT = 0.5  # of the nats by which the fetching heads look elsewhere than at the source
# Objects cover a twentieth of a picture. Without this, only cameras that move were learnt: after 100,000 samples the
# tokens of moving objects fetched from no place in particular (3.6 nats off, the background 0.2).
OBJECT_EMPHASIS = 10.0


@dataclass(frozen=True)
class Truth:
    """What happens in clips.

    descriptions: (B, T, DESCRIPTION), as `effects.describe` gives it.
    covers: (B, T, rows, columns), as `scenes.trace_object` gives it.
    sources: (B, T, rows, columns, 2), as `scenes.trace_sources` gives it.
    object_sources: (B, T, rows, columns, 2), as `scenes.trace_object_sources` gives it.
    """

    descriptions: Tensor
    covers: Tensor
    sources: Tensor
    object_sources: Tensor

    def __getitem__(self, index: Tensor) -> "Truth":
        """Give that of some of the clips."""
        return Truth(self.descriptions[index], self.covers[index], self.sources[index], self.object_sources[index])

    @property
    def source_tokens(self) -> tuple[Tensor, Tensor]:
        """Give the four tokens of the first frame around each token's source, (B, S, 4), and their bilinear weights.

        All four weights are zero where there is no source.
        """
        return self._tokens_around(self.sources)

    @property
    def object_source_tokens(self) -> tuple[Tensor, Tensor]:
        """Give the same of the sources that tokens have if they show the object."""
        return self._tokens_around(self.object_sources)

    def _tokens_around(self, sources: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.tensor([self.covers.shape[3], self.covers.shape[2]])
        place = ((sources * size.min() + size - 1) / 2).flatten(1, 3)
        known = place.isfinite().all(dim=-1, keepdim=True)
        place = place.nan_to_num(0)
        corner = place.floor()
        share = torch.stack([1 - (place - corner), place - corner], dim=-1)  # (B, S, x and y, before and after)
        ends = torch.stack([corner, corner + 1], dim=-1).clamp(min=0).minimum(size[:, None] - 1).long()
        tokens = ends[..., 1, :, None] * size[0] + ends[..., 0, None, :]
        weights = share[..., 1, :, None] * share[..., 0, None, :]
        return tokens.flatten(2), weights.flatten(2) * known

    @property
    def emphasis(self) -> Tensor:
        """Give how much each token's error counts, (B, S): more on objects."""
        return 1 + OBJECT_EMPHASIS * self.covers.flatten(1)

    @property
    def offsets(self) -> Tensor:
        """Give the way from each token to its source, (B, S, 2), NaN where there is none."""
        return self.sources.flatten(1, 3) - token_places(*self.covers.shape[1:])[:, :2]


def token_places(frames: int, rows: int, columns: int) -> Tensor:
    """Give x, y in half short sides, and time in units of 16 frames, of tokens: (S, 3)."""
    time = torch.arange(frames) / 4
    down, across = ((2 * torch.arange(size) + 1 - size) / min(rows, columns) for size in (rows, columns))
    grid = torch.meshgrid(time, down, across, indexing="ij")
    return torch.stack(grid[::-1], dim=-1).flatten(0, 2)


class Reader(nn.Module):
    """Asks the tokens."""

    def __init__(self, transformer: VideoAsPromptTransformer3DModel) -> None:
        super().__init__()
        self.target, self.reference = (
            nn.ModuleDict(
                {"place": nn.Linear(WIDTH, 3), "happening": nn.Linear(WIDTH, DESCRIPTION + 2 + 2)},
            )
            for _ in range(2)
        )
        for answer in self.parameters():  # from chance answers, little would be learnt
            nn.init.zeros_(answer)
        self._tokens: dict[int, tuple[Tensor, Tensor]] = {}
        self._blocks = cast(list[VideoAsPromptBlock], list(transformer.blocks))
        for index in {PLACED_AFTER, EXPERT_BLOCKS[-1], FETCHING - 1, FETCHING_AGAIN[0] - 1, TRACKING - 1}:
            self._blocks[index].register_forward_hook(partial(self._keep, index))

    def _keep(self, index: int, block: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        self._tokens[index] = outputs

    @property
    def learnt_place(self) -> Tensor:
        """Give by what the target's normed tokens tell where they are, (2, WIDTH)."""
        return cast(nn.Linear, self.target["place"]).weight.detach()[:2]

    def loss(self, request: RequestStates, target: Truth, reference: Truth, has_reference: bool) -> Tensor:
        """Judge what the newest tokens tell; a mere mean costs about one for each of the four things asked."""
        streams = [(self.target, target), (self.reference, reference)]
        loss = FETCH_WEIGHT * self._misfetched(request, target)
        if has_reference:
            loss = loss + FETCH_WEIGHT * self._mistracked(request, reference)
        for stream, (answers, truth) in enumerate(streams if has_reference else streams[:1]):
            place = answers["place"](_normed(self._tokens[PLACED_AFTER][stream]))
            places = token_places(*truth.covers.shape[1:])
            loss = loss + (place - places).square().mean() / PLACE_VARIANCE
            told = answers["happening"](_normed(self._tokens[EXPERT_BLOCKS[-1]][stream]))
            loss = loss + _mistold(told, truth)
        return loss

    def track(self, request: RequestStates) -> Tensor:
        """Give where the tracking head looks on the newest tokens: logits (B, S, 2 S), the target's keys first."""
        return look_from_reference(self._blocks[TRACKING], *self._tokens[TRACKING - 1], request, TRACKING)

    def _misfetched(self, request: RequestStates, truth: Truth) -> Tensor:
        """Give the mean nats by which the fetching heads look elsewhere than at their tokens' sources, added up.

        To know where an object's tokens come from takes knowing which those are. So one head is to look where the token
        would come from if it were the object's, which the motion tells alone, as a moving camera does of all tokens.
        """
        again, head_again = FETCHING_AGAIN
        goals = {
            FETCHING: {0: truth.source_tokens, 1: truth.object_source_tokens},
            again: {head_again: truth.source_tokens},
        }
        missed = torch.zeros(())
        for index, goal_of in goals.items():
            looked = look(self._blocks[index], self._tokens[index - 1][0], request, goal_of)
            for head, goal in goal_of.items():
                missed = missed + _mislooked(looked[head], *goal, truth.emphasis)
        return missed

    def _mistracked(self, request: RequestStates, truth: Truth) -> Tensor:
        """Give the same of the tracking head."""
        logits = self.track(request)
        tokens, weights = truth.source_tokens
        return _mislooked(logits, tokens + logits.shape[1], weights, truth.emphasis)


def _mislooked(logits: Tensor, tokens: Tensor, weights: Tensor, emphasis: Tensor) -> Tensor:
    """Give the mean relative entropy between where tokens look and should look, more of some tokens than of others.

    logits: (B, S, keys). tokens, weights: (B, S, 4), the keys to look at, and how much at each. emphasis: (B, S).
    """
    wanted = weights * weights.clamp(min=1e-6).log()
    missed = (wanted - weights * logits.log_softmax(dim=-1).gather(2, tokens)).sum(dim=-1)
    return (emphasis * missed).sum() / (emphasis * weights.sum(dim=-1)).sum().clamp(min=1)


def look(block: VideoAsPromptBlock, tokens: Tensor, request: RequestStates, heads: Iterable[int]) -> dict[int, Tensor]:
    """Give the logits (B, S, S) of some heads of a block's self-attention, target alone, on tokens (B, S, d)."""
    query, key = _project(
        block.attn1, block.norm1(tokens), block.scale_shift_table + request.times.modulation, request.rotary
    )
    return {head: _compare(query, key, head) for head in heads}


def look_from_reference(
    block: VideoAsPromptBlock, target: Tensor, reference: Tensor, request: RequestStates, index: int
) -> Tensor:
    """Give the logits (B, S, 2 S) of the joint attention's first head in block `index`, from the reference at both."""
    conditions = request.references[index]
    assert conditions is not None
    _, target_key = _project(
        block.attn1, block.norm1(target), block.scale_shift_table + request.times.modulation, request.rotary
    )
    query, key = _project(
        block.attn1_mot_ref,
        block.norm1_mot_ref(reference),
        block.scale_shift_table_mot_ref + conditions.time,
        conditions.rotary,
    )
    return _compare(query, torch.cat([target_key, key], dim=1), head=0)


def _project(attn: WanAttention, normed: Tensor, modulation: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
    """Give queries and keys, (B, S, heads, head_dim)."""
    shift, scale, *_ = modulation.chunk(6, dim=1)
    modulated = torch.addcmul(shift, normed, 1 + scale)
    query, key = (project_tokens(part, attn, modulated, rotary) for part in ("query", "key"))
    return query, key


def _compare(query: Tensor, key: Tensor, head: int) -> Tensor:
    return query[:, :, head] @ key[:, :, head].transpose(1, 2) / query.shape[-1] ** 0.5


def _normed(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])


def _mistold(told: Tensor, truth: Truth) -> Tensor:
    """Judge what tokens (B, S, DESCRIPTION + 2 + 2) tell: what happens, where the object is and was, the offsets."""
    happening, where, offsets = told.split([DESCRIPTION, 2, 2], dim=-1)
    frames = truth.descriptions.shape[1]
    error = (happening.unflatten(1, (frames, -1)) - truth.descriptions[:, :, None]).square().mean(dim=(0, 1, 2))
    covers = torch.stack([truth.covers, truth.covers[:, :1].expand_as(truth.covers)], dim=-1)  # now, and at first
    missed = (where - covers.flatten(1, 3)).square().mean() / COVER_VARIANCE
    known = truth.offsets.isfinite()
    counts = truth.emphasis[:, :, None].expand_as(known)[known]
    strayed = (counts * (offsets - truth.offsets)[known].square()).sum() / counts.sum() / OFFSET_VARIANCE
    return (error * description_weights()).sum() + missed + strayed
