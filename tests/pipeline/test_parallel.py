"""Several processes make the video that one makes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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


def start(rank: int, ranks: int, ring_degree: int, port: int, out: Path) -> "subprocess.Popen[str]":
    """Start one of several ranks as `torchrun` would."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.pipeline.parallel_rank", str(out), str(ring_degree)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("ranks", "ring_degree"), [(2, 1), (2, 2), (4, 2)], ids=["by heads", "in a ring", "in rings and by heads"]
)
def test_several_ranks_give_the_result_of_one(
    tiny_pipe: VideoAsPromptPipeline, tmp_path: Path, ranks: int, ring_degree: int
) -> None:
    """Final latents agree to 2e-5, also of a run after one that was stopped; each rank did its share of the tokens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [start(rank, ranks, ring_degree, port, tmp_path / "latents.pt") for rank in range(ranks)]
    errors = [rank.communicate(timeout=240)[1] for rank in started]
    assert [rank.returncode for rank in started] == [0] * ranks, errors

    golden = read_golden("pipeline_a")
    alone = tiny_pipe(**golden.arguments(), latents=golden["in.latents"], output_type="latent").frames
    together = torch.load(tmp_path / "latents.pt")
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    tokens = [int((tmp_path / f"tokens_{rank}").read_text()) for rank in range(ranks)]
    frames, height, width = alone.shape[2:]
    assert tokens == [frames * height * width // 4 // ranks] * ranks
