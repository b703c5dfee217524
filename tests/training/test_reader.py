"""What the denoiser's tokens are asked, and what they should answer."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from pipeline.transformer import VideoAsPromptBlock
from training.autoencoder import LATENT_CHANNELS
from training.components import DRAWING, FETCHING, build_tokenizer
from training.denoiser import Nano, Stream, encode_pictures, encode_texts, predict, with_condition
from training.effects import EFFECTS, animate, describe, draw_parameters, still
from training.reader import Reader, Truth, _mislooked, look, token_places
from training.scenes import draw_scene, trace_object, trace_object_sources, trace_sources


def truth_of(name: str | None) -> Truth:
    generator = Generator().manual_seed(3)
    motion = still(17)
    if name is not None:
        motion = animate(next(e for e in EFFECTS if e.name == name), draw_parameters(generator), 17)
    scene = draw_scene(generator, 80, 144, still(17), with_object=False)
    traces = (trace_object, trace_sources, trace_object_sources)
    return Truth(describe(motion)[None], *(trace(scene, motion, 80, 144)[None] for trace in traces))


def test_where_nothing_moves_every_token_comes_from_its_own_place() -> None:
    """From that one alone, at no distance."""
    truth = truth_of(None)

    tokens, weights = truth.source_tokens
    assert torch.allclose(weights[0].max(dim=1).values, torch.ones(900), atol=1e-4)
    main = tokens[0].gather(1, weights[0].argmax(dim=1, keepdim=True)).squeeze(1)
    assert (main == torch.arange(5 * 180) % 180).all()
    assert truth.offsets.abs().max() < 1e-5


def test_what_a_pan_brings_into_the_picture_comes_from_nowhere() -> None:
    """The rest comes from tokens further in the pan's direction, shared among the four around the source."""
    tokens, weights = (values[0].unflatten(0, (5, 10, 18)) for values in truth_of("pan_right").source_tokens)

    assert (weights[-1, :, -1] == 0).all()
    assert torch.allclose(weights[-1, :, 0].sum(dim=1), torch.ones(10), atol=1e-5)
    assert (tokens[-1, :, 0] % 18 > 0).all()


def test_where_an_object_would_come_from_is_asked_of_all_tokens_near_it() -> None:
    """Of those beside it too, which nobody has to tell apart from it first; of none in scenes without an object."""
    generator = Generator().manual_seed(3)
    motion = animate(next(e for e in EFFECTS if e.name == "move_right"), draw_parameters(generator), 17)
    scene = draw_scene(generator, 80, 144, motion, with_object=True)
    traces = (trace_object, trace_sources, trace_object_sources)
    truth = Truth(describe(motion)[None], *(trace(scene, motion, 80, 144)[None] for trace in traces))

    weights, supposed = truth.source_tokens[1].sum(dim=-1), truth.object_source_tokens[1].sum(dim=-1)
    covered = truth.covers.flatten(1) > 0.9
    assert torch.allclose(supposed[covered & (weights > 0)], torch.ones(()))
    assert (supposed[~covered] > 0).any()
    assert (supposed == 0).any()
    assert (truth_of("pan_right").object_source_tokens[1] == 0).all()


def test_an_objects_tokens_count_more() -> None:
    """The same mistake about where a token came from costs more on an object than on as much of the background."""
    truth = truth_of(None)
    covers = torch.zeros_like(truth.covers)
    covers[:, :, 2:4, 3:6] = 1
    truth = replace(truth, covers=covers)
    tokens, weights = truth.source_tokens
    right = torch.zeros(1, 900, 900).scatter_add(2, tokens, 20 * weights)

    def cost(rows: slice, columns: slice) -> float:
        wrong = right.unflatten(1, (5, 10, 18)).clone()
        wrong[:, :, rows, columns] = 0
        return _mislooked(wrong.flatten(1, 3), tokens, weights, truth.emphasis).item()

    assert cost(slice(2, 4), slice(3, 6)) > 5 * cost(slice(6, 8), slice(9, 12))


def test_token_places_are_in_half_short_sides() -> None:
    """Rows span -1 to 1 in a landscape, columns more; time counts sixteen frames."""
    places = token_places(5, 5, 9).unflatten(0, (5, 5, 9))

    assert torch.allclose(places[-1, 0, 0], torch.tensor([-1.6, -0.8, 1.0]))
    assert torch.allclose(places[0, -1, -1], torch.tensor([1.6, 0.8, 0.0]))


def test_the_fetching_head_of_a_new_model_looks_at_the_start_image() -> None:
    """At the token's own place, in a network that has learnt nothing yet; so the reader finds little to blame."""
    torch.manual_seed(0)
    nano = Nano()
    reader = Reader(nano.transformer)
    latents = torch.randn(1, LATENT_CHANNELS, 5, 10, 18)
    states, counts = encode_texts(nano, build_tokenizer(), [""])
    stream = Stream(with_condition(latents, latents), states, counts, encode_pictures(nano, torch.rand(1, 3, 80, 144)))
    block = nano.transformer.blocks[FETCHING]
    assert isinstance(block, VideoAsPromptBlock)
    read: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    with torch.no_grad():
        _, request = predict(nano, torch.tensor([900.0]), stream, stream)
        attention = look(block, read[0], request, heads=[0])[0].softmax(dim=-1)
        own = torch.arange(900) % 180
        assert attention[0, torch.arange(900), own].mean() > 0.7
        still_, panned = (
            reader.loss(request, truth_of(name), truth_of(name), has_reference=False) for name in (None, "pan_right")
        )

    assert still_ < panned


@pytest.mark.parametrize("index", DRAWING)
def test_the_drawing_heads_of_a_new_model_look_at_neighbours(index: int) -> None:
    """At the one a step away in the token's own frame, wherever there is one."""
    torch.manual_seed(0)
    nano = Nano()
    latents, conditions = torch.randn(2, 1, LATENT_CHANNELS, 5, 10, 18)
    states, counts = encode_texts(nano, build_tokenizer(), [""])
    images = encode_pictures(nano, torch.rand(1, 3, 80, 144))
    stream = Stream(with_condition(latents, conditions), states, counts, images)
    block = nano.transformer.blocks[index]
    assert isinstance(block, VideoAsPromptBlock)
    read: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    with torch.no_grad():
        _, request = predict(nano, torch.tensor([900.0]), stream, stream)
        looked = look(block, read[0], request, heads=range(2))

    inner = torch.arange(900).view(5, 10, 18)[:, 1:-1, 1:-1].flatten()
    for head, (down, right) in enumerate(DRAWING[index]):
        attention = looked[head].softmax(dim=-1)[0]
        assert attention[inner, inner + 18 * down + right].mean() > 0.5


def test_the_tracking_head_of_a_new_model_finds_where_something_was() -> None:
    """A picture that moves by a row and two columns is found in the first frame, before anything is learnt."""
    torch.manual_seed(0)
    nano = Nano()
    reader = Reader(nano.transformer)
    picture = torch.randn(LATENT_CHANNELS, 12, 20)
    latents = torch.stack([picture[:, time : time + 8, 2 * time : 2 * time + 14] for time in range(3)], dim=1)[None]
    states, counts = encode_texts(nano, build_tokenizer(), [""])
    stream = Stream(with_condition(latents, latents), states, counts, encode_pictures(nano, torch.rand(1, 3, 64, 112)))

    with torch.no_grad():
        _, request = predict(nano, torch.tensor([900.0]), stream, stream)
        logits = reader.track(request)

    found = logits[0, :, 3 * 112 :].argmax(dim=1).unflatten(0, (3, 8, 14))  # among the reference's own tokens
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(14), indexing="ij")
    for time in range(3):
        expected = (rows + time) * 14 + columns + 2 * time
        inner = (slice(1, 7 - time), slice(1, 13 - 2 * time))
        assert (found[time][inner] == expected[inner]).float().mean() > 0.9
