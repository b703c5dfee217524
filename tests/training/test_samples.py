"""What happens in the clips is drawn in the shares that a diet names."""

from collections import Counter
from dataclasses import replace

import pytest
from torch import Generator

from training.denoiser import EVERYTHING
from training.effects import EFFECTS
from training.samples import PRACTICE

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
