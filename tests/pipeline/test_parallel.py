"""Several processes make the video that one makes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
import torch

from pipeline import VideoAsPromptPipeline
from pipeline.errors import InvalidInputError
from pipeline.parallel import choose_degrees
from tests.pipeline.conftest import read_golden

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("processes", "ring_degree", "degrees"),
    [(8, 1, (1, 8)), (3, 1, (1, 3)), (8, 2, (2, 4)), (3, 3, (3, 1))],
)
def test_attention_is_shared_out_by_heads_unless_rings_are_wanted(
    processes: int, ring_degree: int, degrees: tuple[int, int]
) -> None:
    """Any number of processes takes 40 heads; in rings they take tokens: (ring, ulysses)."""
    assert choose_degrees(40, processes, ring_degree).mesh_shape == degrees


@pytest.mark.parametrize(
    ("processes", "ring_degree", "sentence"),
    [
        (8, 3, "8 processes cannot form rings of 3; give one of 1, 2, 4, 8."),
        (6, 2, "40 heads cannot be dealt out to 3 processes beside rings of 2; try 1."),
    ],
)
def test_rings_that_cannot_be_are_refused(processes: int, ring_degree: int, sentence: str) -> None:
    """With what would work."""
    with pytest.raises(InvalidInputError) as told:
        choose_degrees(40, processes, ring_degree)

    assert (told.value.field, told.value.message) == ("ring_degree", sentence)


class Ranks:
    """Several ranks, started as `torchrun` would, in a scenario of `parallel_rank.py`. folder: for what they tell."""

    def __init__(self, count: int, folder: Path, scenario: str, argument: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tests.pipeline.parallel_rank", str(folder), scenario, str(argument)]
        self.processes = [
            subprocess.Popen(
                command,
                env=os.environ | self._environment(rank, count, port),
                cwd=ROOT,
                text=True,
                stderr=subprocess.PIPE,
            )
            for rank in range(count)
        ]

    def _environment(self, rank: int, count: int, port: int) -> dict[str, str]:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        return place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def end(self, rank: int) -> int:
        """Wait for the end of one. Gives its exit code; what it wrote is shown where a test fails."""
        process = self.processes[rank]
        sys.stderr.write(process.communicate(timeout=100)[1])
        return process.returncode


@pytest.mark.parametrize(
    ("ranks", "ring_degree"), [(2, 1), (2, 2), (4, 2)], ids=["by heads", "in a ring", "in rings and by heads"]
)
def test_several_ranks_give_the_result_of_one(
    tiny_pipe: VideoAsPromptPipeline, tmp_path: Path, ranks: int, ring_degree: int
) -> None:
    """Final latents agree to 2e-5, also of a run after one that was stopped; each rank did its share of the tokens.

    Where the leader's weights wait, those of the others do.
    """
    with Ranks(ranks, tmp_path, "videos", ring_degree) as started:
        assert [started.end(rank) for rank in range(ranks)] == [0] * ranks

    golden = read_golden("pipeline_a")
    alone = tiny_pipe(**golden.arguments(), latents=golden["in.latents"], output_type="latent").frames
    together = torch.load(tmp_path / "latents.pt")
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    tokens = [int((tmp_path / f"tokens_{rank}").read_text()) for rank in range(ranks)]
    frames, height, width = alone.shape[2:]
    assert tokens == [frames * height * width // 4 // ranks] * ranks
    assert [(tmp_path / f"profile_{rank}").read_text() for rank in range(ranks)] == ["sequential"] * ranks


@pytest.mark.parametrize("failing", [0, 1])
def test_a_step_that_fails_in_one_rank_fails_for_the_caller(tmp_path: Path, failing: int) -> None:
    """Within seconds, and as the lack of memory it is; those who follow end by themselves, for torchrun to see."""
    with Ranks(2, tmp_path, "failure", failing) as started:
        assert started.end(1) == 1
        (tmp_path / "end").touch()
        assert started.end(0) == 0

    assert (tmp_path / "told").read_text() == "True True"


def test_all_ranks_load_the_leaders_profile(tmp_path: Path) -> None:
    """Else they would make one video with different weights."""
    with Ranks(2, tmp_path, "loading", 1) as started:
        assert [started.end(rank) for rank in range(2)] == [0, 0]

    assert (tmp_path / "loaded").read_text() == "bf16 torch.bfloat16"
