"""What the denoiser's tokens are asked, and what they should answer."""

import torch
from torch import Generator

from training.autoencoder import LATENT_CHANNELS
from training.components import FETCHING, build_tokenizer
from training.denoiser import Nano, Stream, encode_pictures, encode_texts, predict, with_condition
from training.effects import EFFECTS, animate, describe, draw_parameters, still
from training.reader import Reader, Truth, look, token_places
from training.scenes import draw_scene, trace_object, trace_sources


def truth_of(name: str | None) -> Truth:
    generator = Generator().manual_seed(3)
    motion = still(17)
    if name is not None:
        motion = animate(next(e for e in EFFECTS if e.name == name), draw_parameters(generator), 17)
    scene = draw_scene(generator, 80, 144, still(17), with_object=False)
    return Truth(
        describe(motion)[None], trace_object(scene, motion, 80, 144)[None], trace_sources(scene, motion, 80, 144)[None]
    )


def test_where_nothing_moves_every_token_comes_from_its_own_place() -> None:
    """All four latents of a token stood in the same token of the first frame, a quarter of a token off its middle."""
    truth = truth_of(None)

    assert (truth.source_tokens[0] == (torch.arange(5 * 45) % 45)[:, None]).all()
    quarter = 16 / 80 / 2
    offsets = torch.tensor([[-quarter, -quarter], [quarter, -quarter], [-quarter, quarter], [quarter, quarter]])
    assert torch.allclose(truth.offsets[0], offsets.expand(225, 4, 2), atol=1e-5)


def test_what_a_pan_brings_into_the_picture_comes_from_nowhere() -> None:
    """The rest comes from tokens further in the pan's direction."""
    tokens = truth_of("pan_right").source_tokens[0].unflatten(0, (5, 5, 9))

    assert (tokens[-1, :, -1] == -100).all()
    assert (tokens[-1, :, 0] % 9 > 0).all()


def test_token_places_are_in_half_short_sides() -> None:
    """Rows span -1 to 1 in a landscape, columns more; time counts sixteen frames."""
    places = token_places(5, 5, 9).unflatten(0, (5, 5, 9))

    assert torch.allclose(places[-1, 0, 0], torch.tensor([-1.6, -0.8, 1.0]))
    assert torch.allclose(places[0, -1, -1], torch.tensor([1.6, 0.8, 0.0]))


def test_the_fetching_heads_of_a_new_model_look_at_the_start_image() -> None:
    """At their own place, in a network that has learnt nothing yet; so the reader finds little to blame."""
    torch.manual_seed(0)
    nano = Nano()
    reader = Reader(nano.transformer)
    latents = torch.randn(1, LATENT_CHANNELS, 5, 10, 18)
    states, counts = encode_texts(nano, build_tokenizer(), [""])
    stream = Stream(with_condition(latents, latents), states, counts, encode_pictures(nano, torch.rand(1, 3, 80, 144)))
    blocks = dict(enumerate(nano.transformer.blocks))
    read = {index: [] for index in FETCHING}
    for index in FETCHING:
        blocks[index].register_forward_pre_hook(lambda _, inputs, index=index: read[index].append(inputs[0]))

    with torch.no_grad():
        _, request = predict(nano, torch.tensor([900.0]), stream, stream)
        own = torch.arange(225) % 45
        for index, (tokens,) in read.items():
            attention = look(blocks[index], tokens, request).softmax(dim=-1)
            assert (attention[0, :, torch.arange(225), own].mean(dim=1) > 0.6).all()
        still_, panned = (
            reader.loss(request, truth_of(name), truth_of(name), has_reference=False) for name in (None, "pan_right")
        )

    assert still_ < panned
