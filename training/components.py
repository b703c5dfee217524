"""Nano's parts, new and untrained: the classes of the released 14B with small configs."""

import io
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import cast

import sentencepiece
import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, T5TokenizerFast, UMT5Config, UMT5EncoderModel

from pipeline.conditioning import DEFAULT_NEGATIVE_PROMPT
from pipeline.transformer import RotaryEmbedding, VideoAsPromptBlock, VideoAsPromptTransformer3DModel
from training.autoencoder import LATENT_CHANNELS
from training.effects import EFFECTS

VOCABULARY = 2048
TEXT_DIM = 64
IMAGE_DIM = 64
IMAGE_SIZE = 224
WIDTH, FFN_WIDTH, HEADS, LAYERS = 208, 512, 2, 8
EXPERT_BLOCKS = (0, 1, 2, 3, 4)  # the last ones are left to act upon what was read of the reference
# The heads that fetch from the start image, and which of a token's four latents each is for: in rows, from the left.
FETCHING = {5: (0, 3), 6: (1, 2)}
# The same of the experts' heads that look where in the reference's first frame that stood which a token shows.
TRACKING = {2: (0, 3)}
MASK = 4.0  # the size of the given frame's mark in a token
PEAK = 1.33  # with the norm and its weight: 8 nats at the place itself, 4 less beside it
PATCH = 4 * LATENT_CHANNELS  # numbers of a token's latents: channel by channel, of each its four latents


def build_transformer() -> VideoAsPromptTransformer3DModel:
    """Make a new transformer, which holds the start image still; the experts start as `copy_base_to_experts` says."""
    model = VideoAsPromptTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
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
    takes thousands of samples otherwise. A token's first PATCH numbers hold its noisy latents, the next its condition,
    and the one after these its mask; all block outputs but the copies start at zero.
    """
    latents = torch.eye(PATCH).view(PATCH, LATENT_CHANNELS, 1, 2, 2)
    weight = model.patch_embedding.weight.data.zero_()
    weight[:PATCH, :LATENT_CHANNELS] = latents
    weight[PATCH : 2 * PATCH, LATENT_CHANNELS + 4 :] = latents
    weight[2 * PATCH, LATENT_CHANNELS : LATENT_CHANNELS + 4] = MASK / 16
    weight[2 * PATCH + 1 :] += 0.02 * torch.randn_like(weight[2 * PATCH + 1 :])
    model.patch_embedding.bias.data.zero_()
    model.proj_out.weight.data.zero_()
    # the read-out's rows are in the order (rows, columns, channels)
    model.proj_out.weight.data[:, :PATCH] = 1.3 * latents.permute(2, 3, 4, 1, 0).reshape(PATCH, PATCH)
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
    _look_at_start_image(blocks[0].attn1, heads=(0,), part=0)
    for index, latents_of_heads in FETCHING.items():
        _look_at_start_image(blocks[index].attn1, heads=(0, 1), part=0)
        for head, latent in enumerate(latents_of_heads):
            _subtract_condition(blocks[index].attn1, head, torch.arange(latent, PATCH, 4))


def _subtract_condition(attention: WanAttention, head: int, numbers: Tensor, start: int = 0) -> None:
    """Let a head subtract what it sees of the condition's numbers from those that stand from `start` on in a token."""
    value, back = attention.to_v, attention.to_out[0]
    first = head * WIDTH // HEADS
    value.weight.data[first : first + PATCH] = 0
    value.weight.data[first : first + PATCH, PATCH : 2 * PATCH] = torch.eye(PATCH)
    value.bias.data[first : first + PATCH] = 0
    back.weight.data[start + numbers, first + numbers] = -1


def _look_at_start_image(attention: WanAttention, heads: tuple[int, ...], part: int) -> None:
    """Let heads look at the given frame of their own stream, at the token's own place.

    A constant in queries and keys, on the quickest rotations of rows and columns, makes their product a peak at
    distance zero; on the slowest rotation of time, only the given frame's keys have it. part: which of the two numbers
    of each rotation holds it: 0 for the target and 1 for the reference, so that neither peaks for the other.
    """
    time, across = RotaryEmbedding(WIDTH // HEADS).axis_dims[:2]
    pairs = torch.tensor([start + pair for start in (time, time + across) for pair in (0, 2)])
    for head in heads:
        first = head * WIDTH // HEADS
        place, slowest = first + pairs + part, first + time - 2 + part
        used = torch.cat([first + pairs, first + pairs + 1, torch.tensor([first + time - 2, first + time - 1])])
        for projection, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
            # smaller, so that the constants weigh more after the norm
            projection.weight.data[first : first + WIDTH // HEADS] *= 0.5
            projection.weight.data[used] = 0
            projection.bias.data[first : first + WIDTH // HEADS] = 0
            projection.bias.data[place] = PEAK
            norm.weight.data[used] = 2.5
        attention.to_q.bias.data[slowest] = PEAK
        attention.to_k.weight.data[slowest, 2 * PATCH] = PEAK / MASK


def copy_base_to_experts(model: VideoAsPromptTransformer3DModel) -> None:
    """Give every reference twin (`*_mot_ref`) the weights of the base module beside it.

    Only the first block's twin does something else than its base: its first head looks at the reference's first frame
    and subtracts it from the condition, which is grey in later frames. So a token has what it shows beside what was at
    its place at first.
    """
    weights = model.state_dict()
    for name, weight in weights.items():
        if "_mot_ref" in name:
            weight.copy_(weights[name.replace("_mot_ref", "")])
    twin = cast(VideoAsPromptBlock, model.blocks[0]).attn1_mot_ref
    _look_at_start_image(twin, heads=(0,), part=1)
    _subtract_condition(twin, 0, torch.arange(PATCH), start=PATCH)


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
