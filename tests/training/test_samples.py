"""What happens in the clips is drawn in the shares that a diet names; and clips are made as they are needed."""

from collections import Counter
from dataclasses import replace

import pytest
from torch import Generator

from training.denoiser import EVERYTHING
from training.effects import EFFECTS
from training.samples import PRACTICE, SIZES, Shape, first_blocks, landscape

DRAWN = 4000


def test_practised_effects_come_oftener_at_the_cost_of_their_kind() -> None:
    """Spinning takes its turns from what happens to objects; light and camera keep their shares."""
    diet = replace(EVERYTHING, combined=0.0, practised=frozenset({"spin_right"}))
    generator = Generator().manual_seed(0)

    drawn = Counter(effect.name for _ in range(DRAWN) for effect in diet.draw_effects(generator, with_object=True))

    lights = sum(drawn[effect.name] for effect in EFFECTS if effect.is_light)
    moves = [drawn[name] for name in ("move_left", "move_right", "move_up", "move_down")]
    assert lights / DRAWN == pytest.approx(diet.light_share, abs=0.02)
    assert drawn["spin_right"] / (sum(moves) / 4) == pytest.approx(PRACTICE, rel=0.2)
    assert set(drawn) == {effect.name for effect in EFFECTS}


def test_two_effects_at_once_are_of_two_kinds() -> None:
    """Never two things that happen to the object, nor two moves of the camera."""
    diet, generator = replace(EVERYTHING, combined=1.0), Generator().manual_seed(0)

    drawn = [diet.draw_effects(generator, with_object=True) for _ in range(DRAWN // 10)]

    kinds = [[(effect.is_light, effect.needs_object) for effect in effects] for effects in drawn]
    assert all(len(set(pair)) == 2 for pair in kinds)


def test_without_an_object_nothing_happens_to_it() -> None:
    """Alone or together with something else."""
    diet, generator = replace(EVERYTHING, combined=0.5), Generator().manual_seed(0)

    drawn = [diet.draw_effects(generator, with_object=False) for _ in range(DRAWN // 10)]

    assert not any(effect.needs_object for effects in drawn for effect in effects)


@pytest.mark.parametrize(
    ("shape", "blocks"), [(landscape(17, SIZES[0]), 9), (landscape(17), 3), (landscape(49), 2), (Shape(5, 32, 48), 9)]
)
def test_of_large_clips_fewer_are_made_at_first(shape: Shape, blocks: int) -> None:
    """They take long, and most of them seldom come."""
    assert first_blocks(shape) == blocks
