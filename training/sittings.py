"""What all training stages share: processes, the learning-rate schedule by the clock, checkpoints and the log."""

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from training.muon import Muon

WARMUP_S = 20.0
# glibc is to keep the memory of large tensors: asking the kernel for it anew takes half of an encoding's time
# (its search among what was freed came to take a sixth of all time within a quarter of an hour; jemalloc in its place,
# by LD_PRELOAD and MALLOC_CONF=oversize_threshold:0,dirty_decay_ms:300000,muzzy_decay_ms:-1, took a fiftieth)
KEEP_MEMORY = {f"MALLOC_{name}_": str(2**32) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")} | {
    "MALLOC_TOP_PAD_": str(2**28)
}
ADAM_LR = 1.5e-3


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0


def start_workers(train: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run train(worker, *arguments) in `count` processes of one thread each; that beats one process of two threads
    as soon as anything else runs on the machine.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])} | KEEP_MEMORY
    spawn(_work, args=(count, train, arguments), nprocs=count)


def _work(rank: int, count: int, train: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    train(Worker(rank, count), *arguments)
    dist.destroy_process_group()


def average_gradients(weights: Iterable[nn.Parameter], worker: Worker) -> None:
    """Replace every gradient by its mean over the workers, in one message."""
    if worker.count == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= worker.count
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class Optimizers:
    """Muon on the matrices and convolutions, AdamW on everything else (vectors, embeddings)."""

    def __init__(self, model: nn.Module, lr: float, worker: Worker) -> None:
        """lr: Muon's; AdamW's is ADAM_LR."""
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = [w for w in weights if w.squeeze().ndim >= 2 and id(w) not in embeddings]
        chosen = {id(weight) for weight in matrices}
        self.weights, self.worker = weights, worker
        self.parts = [
            Muon(matrices, lr=lr, rank=worker.rank, count=worker.count),
            torch.optim.AdamW(
                [w for w in weights if id(w) not in chosen], lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]
        self.base_lrs = [lr, ADAM_LR]

    def step(self, lr_scale: float) -> None:
        """Average the gradients over the workers, update the weights, and clear the gradients."""
        average_gradients(self.weights, self.worker)
        for part, base_lr in zip(self.parts, self.base_lrs, strict=True):
            part.param_groups[0]["lr"] = base_lr * lr_scale
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Give the state to save."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take over a saved state."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def sitting(minutes: float, pace: float = 1.0) -> Iterator[float]:
    """Give the factor of the learning rate, step after step until the minutes are over: from `pace` down to nothing."""
    begin, length_s = time.monotonic(), minutes * 60
    # all workers stop at the same step: the lead's clock counts
    while (elapsed_s := _shared_clock(begin)) < length_s:
        warm = min(1.0, (elapsed_s + 1) / WARMUP_S)
        yield pace * warm * (1 - elapsed_s / length_s)


def _shared_clock(begin: float) -> float:
    elapsed = torch.tensor(time.monotonic() - begin, dtype=torch.float64)
    dist.broadcast(elapsed, src=0)
    return elapsed.item()


def return_freed_memory() -> None:
    """Give the system back what is free, where there is a way (glibc).

    Clips that stay lie scattered among what was freed around them: after an hour each worker had kept 11 GB.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def save_checkpoint(path: Path, **state: Any) -> None:
    """Write a checkpoint such that a crash leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def write_log(path: Path, **figures: Any) -> None:
    """Append a line of JSON to a log, with the time."""
    with path.open("a") as log:
        log.write(json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), **figures}) + "\n")


def psnr(first: Tensor, second: Tensor) -> float:
    """Give the peak signal-to-noise ratio, in dB, of pixels in -1 to 1."""
    return -10 * torch.log10((first.float() - second.float()).square().mean() / 4).item()
