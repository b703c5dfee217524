"""Several processes make the video that one makes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import VideoAsPromptPipeline
from pipeline.parallel import choose_degrees
from tests.pipeline.conftest import read_golden

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("heads", "processes", "degrees"),
    [(40, 8, (1, 8)), (40, 2, (1, 2)), (40, 3, (3, 1)), (40, 6, (3, 2)), (2, 2, (1, 2))],
)
def test_attention_is_shared_out_by_heads_first(heads: int, processes: int, degrees: tuple[int, int]) -> None:
    """What does not divide the heads goes around in a ring: (ring, ulysses)."""
    assert choose_degrees(heads, processes).mesh_shape == degrees


def start(rank: int, port: int, out: Path) -> "subprocess.Popen[str]":
    """Start one of two ranks as `torchrun` would."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.pipeline.parallel_rank", str(out)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stderr=subprocess.PIPE)


def test_two_ranks_give_the_result_of_one(tiny_pipe: VideoAsPromptPipeline, tmp_path: Path) -> None:
    """Final latents agree to 2e-5, also of a run after one that was stopped; both ranks did half of the tokens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = [start(rank, port, tmp_path / "latents.pt") for rank in range(2)]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors

    golden = read_golden("pipeline_a")
    alone = tiny_pipe(**golden.arguments(), latents=golden["in.latents"], output_type="latent").frames
    together = torch.load(tmp_path / "latents.pt")
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    tokens = [int((tmp_path / f"tokens_{rank}").read_text()) for rank in range(2)]
    frames, height, width = alone.shape[2:]
    assert tokens == [frames * height * width // 4 // 2] * 2
