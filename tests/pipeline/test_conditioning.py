"""Texts, pictures and clips as the network was trained to see them."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import VideoAsPromptPipeline
from pipeline.conditioning import TEXT_LENGTH, clean_text, encode_condition, encode_text, stretch_to_pixels
from tests.pipeline.conftest import read_golden, read_json

TEXTS = read_json("tokenizer_cases.json")


@pytest.mark.parametrize("case", TEXTS, ids=range(len(TEXTS)))
def test_texts_are_cleaned_and_cut_into_the_references_tokens(
    tiny_pipe: VideoAsPromptPipeline, case: dict[str, object]
) -> None:
    """Mojibake, entities, white space and any script give the reference's cleaned text and token ids."""
    cleaned = clean_text(str(case["text"]))

    assert cleaned == case["cleaned"]
    assert tiny_pipe.tokenizer(cleaned).input_ids == case["ids"]


@torch.no_grad()
def test_a_text_too_long_is_cut_at_512_tokens(tiny_pipe: VideoAsPromptPipeline) -> None:
    """A long text fills all rows: no padding is left to stand for."""
    states = encode_text("word " * 2000, tiny_pipe.tokenizer, tiny_pipe.text_encoder)

    assert states.states.shape[1] == TEXT_LENGTH + 1
    assert states.row_counts[0, -1] == 0


@torch.no_grad()
def test_the_row_counts_always_add_up_to_512(tiny_pipe: VideoAsPromptPipeline) -> None:
    """However short a text, its rows and what they stand for make the 512 the network was trained with."""
    for text in ("", "a horse", "a horse that inflates and floats away"):
        states = encode_text(text, tiny_pipe.tokenizer, tiny_pipe.text_encoder)

        assert states.row_counts.sum() == TEXT_LENGTH


def test_pictures_are_stretched_not_cropped() -> None:
    """The resize ignores the aspect and gives the reference's pixels, to the two levels Pillow versions differ by."""
    golden = read_golden("pipeline_b_euler")

    pixels = stretch_to_pixels([golden.picture()], golden.case["height"], golden.case["width"])

    levels = ((pixels[0, :, 0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
    assert np.abs(levels - golden["cond.image_resized"].numpy()).max() <= 2


@pytest.mark.parametrize("ends", [False, True])
@torch.no_grad()
def test_the_mask_marks_what_is_given(tiny_pipe: VideoAsPromptPipeline, ends: bool) -> None:
    """The first frame fills all four channels of latent frame 0; a given last frame is the last channel of the last."""
    first = stretch_to_pixels([Image.new("RGB", (32, 32), "red")], 32, 32)

    condition = encode_condition(first, first if ends else None, 9, tiny_pipe.vae)

    mask = condition[0, :4, :, 0, 0]
    assert condition.shape == (1, 20, 3, 4, 4)
    assert mask[:, 0].tolist() == [1, 1, 1, 1]
    assert mask[:, 1].tolist() == [0, 0, 0, 0]
    assert mask[:, 2].tolist() == [0, 0, 0, float(ends)]
