"""The network as its description has it, with nothing saved: the oracle of the fast path.

One video, one guidance branch, one step at a time; all 512 text rows; every constant computed again; complex rotation;
the reference carried through every part of every expert. Only the weights come from the model under test.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.conditioning import TEXT_LENGTH, Conditions, TextStates
from pipeline.denoise import apply_guidance
from pipeline.transformer import VideoAsPromptTransformer3DModel


def rotations(grid: tuple[int, int, int], head_dim: int, first_frame: int) -> Tensor:
    """Give e^(i angle) of every token and pair, (S, 1, head_dim / 2), complex128."""
    across = 2 * (head_dim // 6)
    axes = []
    for start, length, dim in zip((first_frame, 0, 0), grid, (head_dim - 2 * across, across, across), strict=True):
        frequencies = 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        axes.append(torch.outer(torch.arange(start, start + length, dtype=torch.float64), frequencies))
    time, rows, columns = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
    angles = [axis[place.flatten()] for axis, place in zip(axes, (time, rows, columns), strict=True)]
    joined = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(joined), joined)[:, None]


def turn(states: Tensor, rotation: Tensor) -> Tensor:
    """Rotate (S, heads, head_dim)."""
    pairs = torch.view_as_complex(states.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(states)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from (S, heads, head_dim) to (n, heads, head_dim), giving (S, d)."""
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return (weights @ value).transpose(0, 1).flatten(1)


def split(states: Tensor, attn: Any) -> Tensor:
    """Split (S, d) into (S, heads, head_dim)."""
    return states.unflatten(-1, (attn.heads, -1))


def project(attn: Any, states: Tensor, rotation: Tensor) -> list[Tensor]:
    """Give query, key and value of tokens (S, d)."""
    query, key = split(attn.norm_q(attn.to_q(states)), attn), split(attn.norm_k(attn.to_k(states)), attn)
    return [turn(query, rotation), turn(key, rotation), split(attn.to_v(states), attn)]


def cross_attend(attn: Any, states: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """Attend to text (512, d) and image (m, d)."""
    query = split(attn.norm_q(attn.to_q(states)), attn)
    from_text = attend(query, split(attn.norm_k(attn.to_k(text)), attn), split(attn.to_v(text), attn))
    image_key = split(attn.norm_added_k(attn.add_k_proj(image)), attn)
    return attn.to_out[0](from_text + attend(query, image_key, split(attn.add_v_proj(image), attn)))


def layer(block: Any, name: str, is_reference: bool) -> Any:
    """Give a block's part for one stream."""
    return getattr(block, f"{name}_mot_ref" if is_reference else name)


def normalised(states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise and modulate (S, d)."""
    return F.layer_norm(states, states.shape[-1:], eps=1e-6) * (1 + scale) + shift


def finish(block: Any, is_reference: bool, states: Tensor, attended: Tensor, table: Tensor, context: Any) -> Tensor:
    """Do what follows a block's self-attention."""
    states = states + table[2] * layer(block, "attn1", is_reference).to_out[0](attended)
    norm = layer(block, "norm2", is_reference)(states)
    states = states + cross_attend(layer(block, "attn2", is_reference), norm, *context)
    return states + table[5] * layer(block, "ffn", is_reference)(normalised(states, table[3], table[4]))


def predict_plainly(
    model: VideoAsPromptTransformer3DModel,
    target: tuple[Tensor, Tensor, Tensor],
    timestep: Tensor,
    reference: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Give the velocity (out_channels, T, h, w). A stream: latents (C, T, h, w), text (512, dim), image (m, dim)."""
    tokens, contexts, times, turns = [], [], [], []
    frames, height, width = target[0].shape[1:]
    grid = (frames, height // 2, width // 2)
    for latents, text, image in (target, reference):
        ref = len(tokens) == 1
        embedder = model.condition_embedder_mot_ref if ref else model.condition_embedder
        patches = (model.patch_embedding_mot_ref if ref else model.patch_embedding)(latents[None])
        temb, time, text, image = embedder(torch.ones(1) if ref else timestep.view(1), text[None], image[None])
        tokens.append(patches[0].flatten(1).T)
        contexts.append((text[0], image[0]))
        times.append((temb[0], time[0].unflatten(0, (6, -1))))
        turns.append(rotations(grid, model.config.attention_head_dim, -frames if ref else 0))
    for block in model.blocks:
        streams = [False, True] if block.has_expert else [False]
        tables = [layer(block, "scale_shift_table", ref)[0] + times[ref][1] for ref in streams]
        projected = [
            project(layer(block, "attn1", ref), normalised(tokens[ref], tables[ref][0], tables[ref][1]), turns[ref])
            for ref in streams
        ]
        attended = attend(*(torch.cat(parts) for parts in zip(*projected, strict=True))).split(len(tokens[0]))
        for ref in streams:
            tokens[ref] = finish(block, ref, tokens[ref], attended[ref], tables[ref], contexts[ref])
    shift, scale = model.scale_shift_table[0] + times[0][0]
    patches = model.proj_out(normalised(tokens[0], shift, scale)).view(*grid, 1, 2, 2, -1)
    return patches.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, frames, height, width)


def pad(text: TextStates) -> Tensor:
    """Give all 512 rows of a text, zeros after its own."""
    own = text.states[0][text.row_counts[0] == 1][: text.states.shape[1] - 1]
    return F.pad(own, (0, 0, 0, TEXT_LENGTH - len(own)))


@torch.no_grad()
def denoise_plainly(
    model: VideoAsPromptTransformer3DModel,
    scheduler: Any,
    conditions: Conditions,
    latents: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Denoise (1, z, T, h, w) as `pipeline.denoise.denoise` does, branch by branch on the plain network."""
    for timestep in scheduler.timesteps:
        velocities = []
        for texts in (conditions.positive, conditions.negative):
            if texts is None:
                continue
            noisy = torch.cat([latents, conditions.condition_latents], dim=1)[0]
            target = (noisy, pad(texts.target), conditions.image_embeds[0])
            reference = (conditions.reference_latents[0], pad(texts.reference), conditions.reference_image_embeds[0])
            velocities.append(predict_plainly(model, target, timestep, reference)[None])
        velocity = velocities[0] if len(velocities) == 1 else apply_guidance(*velocities, guidance_scale)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
