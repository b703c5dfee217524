"""The table of what to expect."""

import pytest

from pipeline import predictions
from pipeline.predictions import FRAMES, USUAL_MACHINES, main, table, usual_machine
from pipeline.spec import SIZES
from tests.pipeline.machines import card, processor


def test_the_table_has_a_row_for_each_machine_and_size() -> None:
    """And a column for each length."""
    lines = list(table([usual_machine(*one) for one in USUAL_MACHINES]))

    assert len(lines) == 2 + len(USUAL_MACHINES) * len(SIZES)
    assert {line.count("|") for line in lines} == {3 + len(FRAMES)}


def test_every_named_size_of_card_can_make_something() -> None:
    """From 80 down to 8 GB."""
    lines = list(table([card(gib, ram_gib=64) for gib in (80, 48, 24, 16, 12, 8)]))

    assert all(": " in line for line in lines if "| 480p |" in line)


def test_what_fits_nowhere_is_a_dash() -> None:
    """The 14B on a small processor."""
    assert list(table([processor()]))[-1] == "| 2 processor cores | 720p | - | - | - | - |"


def test_this_machine_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason for its profile."""
    monkeypatch.setattr("sys.argv", ["predictions", "--here"])
    monkeypatch.setattr(predictions, "look_at_machine", lambda folder: card(24))

    main()

    told = capsys.readouterr().out
    assert "| Card 24 | 480p | stream: " in told
    assert "Card 24 with 24 GB, 128 GB of RAM. Each layer is fetched" in told
