"""Nano's parts, new and untrained: the classes of the released 14B with small configs."""

import io
import math
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import cast

import sentencepiece
import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from pipeline.conditioning import DEFAULT_NEGATIVE_PROMPT
from pipeline.transformer import ROTARY_THETA, VideoAsPromptBlock, VideoAsPromptTransformer3DModel
from training.autoencoder import LATENT_CHANNELS
from training.effects import EFFECTS

VOCABULARY = 2048
TEXT_DIM = 64
IMAGE_DIM = 64
IMAGE_SIZE = 224
WIDTH, FFN_WIDTH, HEADS, LAYERS = 144, 384, 2, 12
# A token is one latent, where the 14B has four in one: what moves is copied from token to token, and in steps of four
# latents at once such a copy is hardly nearer to the truth than standing still.
PATCH_SIZE = (1, 1, 1)
EXPERT_BLOCKS = (0, 1, 2, 3, 4, 5)  # the last ones are left to act upon what was read of the reference
FETCHING = 6  # the block whose first head fetches from the start image; its second, from the object in it
FETCHING_AGAIN = (7, 1)  # the block and head that do the first one's work once more, knowing what both have fetched
# The blocks that draw what was fetched: their heads look at a token's neighbours, since tokens at an object's edge show
# something of both sides.
DRAWING = {9: ((0, 1), (0, -1)), 10: ((1, 0), (-1, 0))}  # (down, right) for each head
TRACKING = 3  # the block whose expert's first head looks where in the reference's first frame stood what a token shows
MASK = 4.0  # the size of the given frame's mark in a token
PEAK = 1.33  # with the norm and its weight: the tokens beside the place itself get 3 nats less
HEAD_WIDTH = WIDTH // HEADS
AXIS = HEAD_WIDTH // 3  # numbers of a head that turn with the frame; then as many with the row, and with the column
FRAME_AXIS, ROW_AXIS, COLUMN_AXIS = 0, AXIS, 2 * AXIS
# Of which neighbours the reference's tokens gather something, (down, right): by itself, a latent looks like many;
# with three beside it, it is found again in two of three cases.
NEIGHBOURS = ((0, 1), (1, 0), (-1, -1))
FEATURES = 11  # numbers that tell latents apart
GATHERED = slice(2 * LATENT_CHANNELS + 1, 2 * LATENT_CHANNELS + 1 + len(NEIGHBOURS) * FEATURES)  # where they stand
SOURCE = slice(GATHERED.stop, GATHERED.stop + 2)  # where they keep the place at which the tracking head looks
LIKENESS = 1.5  # of the norm's weight: the right one of 112 tokens gets 0.4 of the attention


def build_transformer() -> VideoAsPromptTransformer3DModel:
    """Make a new transformer, which holds the start image still; the experts start as `copy_base_to_experts` says."""
    model = VideoAsPromptTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        patch_size=PATCH_SIZE,
        in_channels=2 * LATENT_CHANNELS + 4,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=FFN_WIDTH,
        num_layers=LAYERS,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=WIDTH,
        block_idx_with_mot_ref=EXPERT_BLOCKS,
    )
    _hold_still(model)
    copy_base_to_experts(model)
    return model


def _hold_still(model: VideoAsPromptTransformer3DModel) -> None:
    """Set the weights such that the prediction is (noisy latents - start image's latents) * 1.3.

    That is the velocity of a video in which nothing happens, right at sigma = 1 / 1.3. Learning to copy the image
    takes thousands of samples otherwise. A token's first LATENT_CHANNELS numbers hold its noisy latent, the next its
    condition, and the one after these its mask; all block outputs but the copies start at zero.
    """
    latent = torch.eye(LATENT_CHANNELS)[:, :, None, None, None]
    weight = model.patch_embedding.weight.data.zero_()
    weight[:LATENT_CHANNELS, :LATENT_CHANNELS] = latent
    weight[LATENT_CHANNELS : 2 * LATENT_CHANNELS, LATENT_CHANNELS + 4 :] = latent
    weight[2 * LATENT_CHANNELS, LATENT_CHANNELS : LATENT_CHANNELS + 4] = MASK / 4
    weight[2 * LATENT_CHANNELS + 1 :] += 0.04 * torch.randn_like(weight[2 * LATENT_CHANNELS + 1 :])
    # the rest starts with constants of one size, so that the norms hardly depend on the picture
    model.patch_embedding.bias.data.copy_(1.0 - 2 * (torch.arange(WIDTH) % 2))
    model.patch_embedding.bias.data[: 2 * LATENT_CHANNELS + 1] = 0
    model.proj_out.weight.data.zero_()
    model.proj_out.weight.data[:, :LATENT_CHANNELS] = 1.3 * torch.eye(LATENT_CHANNELS)
    model.proj_out.bias.data.zero_()
    model.scale_shift_table.data.zero_()
    nn.init.zeros_(model.condition_embedder.time_proj.weight)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)
    blocks = cast(list[VideoAsPromptBlock], list(model.blocks))
    for block in blocks:
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        block.scale_shift_table.data.zero_()
        block.scale_shift_table.data[:, [2, 5]] = 1  # the gates
    for index in (0, FETCHING):
        _look_at_place(blocks[index].attn1, head=0, part=0)
    for index, steps in DRAWING.items():
        for head, step in enumerate(steps):
            _look_at_place(blocks[index].attn1, head, part=0, step=step)
    _copy_seen(blocks[FETCHING].attn1, 0, -torch.eye(LATENT_CHANNELS), source=LATENT_CHANNELS, goal=0)


def _copy_seen(attention: WanAttention, head: int, change: Tensor, source: int, goal: int) -> None:
    """Let a head add what it sees in tokens from `source` on, times `change` (n, m), to those from `goal` on."""
    seen = slice(head * HEAD_WIDTH, head * HEAD_WIDTH + change.shape[0])
    attention.to_v.weight.data[seen] = 0
    attention.to_v.weight.data[seen, source : source + change.shape[1]] = change
    attention.to_v.bias.data[seen] = 0
    attention.to_out[0].weight.data[:, head * HEAD_WIDTH : (head + 1) * HEAD_WIDTH] = 0
    attention.to_out[0].weight.data[goal : goal + change.shape[0], seen] = torch.eye(change.shape[0])


def _look_at_place(attention: WanAttention, head: int, part: int, step: tuple[int, int] | None = None) -> None:
    """Let a head look at a place in its own stream: the token's own in the given frame, or a step away in its frame.

    A constant in queries and keys, on quick rotations of rows and columns, makes their product a peak at one distance;
    three of them, so that no other distance within a picture comes close. On the slowest rotation of frames, only the
    given frame's keys have it. part: which of the two numbers of each rotation holds it: 0 for the target and 1 for the
    reference, so that neither peaks for the other.
    """
    first, quickest = head * HEAD_WIDTH, torch.tensor([0, 2, 4])
    axes = {ROW_AXIS: 0, COLUMN_AXIS: 0} if step is None else {FRAME_AXIS: 0, ROW_AXIS: step[0], COLUMN_AXIS: step[1]}
    slowest = first + FRAME_AXIS + AXIS - 2
    # only heads of the target that look at their own place are alone in their block; others have such a head beside
    # them, and share a norm with it
    sharpness = 1.8 if part == 0 and step is None else 2.4
    for projection, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        projection.weight.data *= 0.25  # so that the constants weigh more after the norm, in every token alike
        projection.bias.data[first : first + HEAD_WIDTH] = 0
        for axis, distance in axes.items():
            pairs = first + axis + quickest
            ahead = distance * ROTARY_THETA ** (-quickest / AXIS)
            phase = (ahead if projection is attention.to_q else 0 * ahead) + part * math.pi / 2
            for offset, values in enumerate((phase.cos(), phase.sin())):
                projection.weight.data[pairs + offset] = 0
                projection.bias.data[pairs + offset] = PEAK * values
                norm.weight.data[pairs + offset] = sharpness
        projection.weight.data[slowest : slowest + 2] = 0
        norm.weight.data[slowest : slowest + 2] = sharpness
    if step is None:
        _look_at_given_frame(attention, slowest + part)


def _look_at_given_frame(attention: WanAttention, slowest: int, peak: float = PEAK) -> None:
    attention.to_q.bias.data[slowest] = peak
    attention.to_k.weight.data[slowest, 2 * LATENT_CHANNELS] = peak / MASK


def copy_base_to_experts(
    model: VideoAsPromptTransformer3DModel, features: Tensor | None = None, place: Tensor | None = None
) -> None:
    """Give every reference twin (`*_mot_ref`) the weights of the base module beside it.

    Then some heads of the first ones get a task. One looks at the reference's first frame and subtracts it from the
    condition, which is grey in later frames: so a token has what it shows beside what was at its place at first. Three
    gather what tells neighbours, and one looks where in the first frame something was alike, neighbours included, and
    takes that place over.

    features: (FEATURES, LATENT_CHANNELS), what tells latents apart, as `autoencoder.measure_latents` finds it. place:
    (2, WIDTH), by which normed tokens tell their place, as the base has learnt it.
    """
    weights = model.state_dict()
    for name, weight in weights.items():
        if "_mot_ref" in name:
            weight.copy_(weights[name.replace("_mot_ref", "")])
    features = torch.eye(LATENT_CHANNELS)[:FEATURES] if features is None else features
    blocks = cast(list[VideoAsPromptBlock], list(model.blocks))
    writers = [model.patch_embedding_mot_ref]
    for block in blocks[: TRACKING + 1]:
        writers += [block.attn1_mot_ref.to_out[0], block.attn2_mot_ref.to_out[0], block.ffn_mot_ref.net[2]]
    for weight in (weight for writer in writers for weight in writer.parameters()):
        weight.data[GATHERED.start : SOURCE.stop] = 0
    _look_at_place(blocks[0].attn1_mot_ref, head=0, part=1)
    _copy_seen(blocks[0].attn1_mot_ref, 0, -torch.eye(LATENT_CHANNELS), source=LATENT_CHANNELS, goal=LATENT_CHANNELS)
    for index, (head, step) in enumerate(zip((1, 0, 0), NEIGHBOURS, strict=True)):
        _look_at_place(blocks[index].attn1_mot_ref, head, part=1, step=step)
        _copy_seen(blocks[index].attn1_mot_ref, head, features, source=0, goal=GATHERED.start + index * FEATURES)
    _look_for_likeness(blocks[TRACKING].attn1_mot_ref, features)
    if place is not None:
        _copy_seen(blocks[TRACKING].attn1_mot_ref, 0, place, source=0, goal=SOURCE.start)


def _look_for_likeness(attention: WanAttention, features: Tensor) -> None:
    """Let the first head look where in the given frame a token and its neighbours have the same features.

    They stand on slow rotations, which hardly turn within a picture, the first ones on the slowest; the given frame's
    mark stands on frames' slowest one, and a weak preference for near places on quicker ones.
    """
    slow = [axis + AXIS - 1 - number for number in range(16) for axis in (FRAME_AXIS, ROW_AXIS, COLUMN_AXIS)]
    marked = FRAME_AXIS + AXIS - 1
    slow = [place for place in slow if place not in (marked, marked - 1)]
    compared = torch.zeros((len(NEIGHBOURS) + 1) * FEATURES, WIDTH)
    compared[:FEATURES, :LATENT_CHANNELS] = features
    compared[FEATURES:, GATHERED] = torch.eye(len(NEIGHBOURS) * FEATURES)
    for projection, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        projection.weight.data[:HEAD_WIDTH] = 0
        projection.bias.data[:HEAD_WIDTH] = 0
        projection.weight.data[slow[: len(compared)]] = compared
        projection.bias.data[[ROW_AXIS + 5, COLUMN_AXIS + 5]] = PEAK
        norm.weight.data[:HEAD_WIDTH] = LIKENESS
    _look_at_given_frame(attention, marked, peak=5 * PEAK)
    attention.to_out[0].weight.data[:, :HEAD_WIDTH] = 0


def build_text_encoder() -> UMT5EncoderModel:
    """Make a new text encoder."""
    config = UMT5Config(
        vocab_size=VOCABULARY, d_model=TEXT_DIM, d_kv=32, d_ff=128, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def build_image_encoder() -> CLIPVisionModel:
    """Make a new image encoder: 16 patches of 56 pixels and a class token. Its last layer is never read."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=56,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config)


def build_tokenizer() -> T5TokenizerFast:
    """Make a T5 tokenizer out of the captions and of ordinary English (Python's own manual)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(VOCABULARY)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, additional_special_tokens=[], model_max_length=512)


def _sentences() -> Iterator[str]:
    for effect in EFFECTS:
        yield from effect.captions * 20
    yield from [DEFAULT_NEGATIVE_PROMPT] * 20
    for text in topics.values():
        yield from (line.strip() for line in text.splitlines() if line.isascii() and line.strip())
