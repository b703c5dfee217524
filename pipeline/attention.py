"""Which implementation of attention the transformer uses: diffusers' backends by their names, checked beforehand."""

import warnings
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)

from pipeline.errors import InvalidInputError
from pipeline.spec import NATIVE_ATTENTION

FETCHED = "_hub"  # ends the names of kernels that are downloaded on first use: not tried just to list them


def list_attentions() -> list[str]:
    """Give the names of those that work on this machine, without those that would be downloaded."""
    names = [backend.value for backend in AttentionBackendName]
    return [name for name in names if not name.endswith(FETCHED) and _find_fault(name) is None]


def check_attention(name: str) -> None:
    """Raise InvalidInputError, naming those there are, unless this machine has this one and it computes something."""
    if name == NATIVE_ATTENTION:
        return
    if name not in {backend.value for backend in AttentionBackendName}:
        fault = "there is none of that name"
    else:
        fault = _find_fault(name) or ""
    if fault:
        known = ", ".join(list_attentions())
        raise InvalidInputError(
            "attention", f"The attention “{name}” cannot be used: {fault}. This machine has {known}."
        )


def use_attention(transformer: Any, name: str) -> None:
    """Let a transformer use it; diffusers makes it the default of the whole process as well.

    The native one is left as it is. Attention with a mask, a part of the cross-attention, stays native.
    Raises InvalidInputError as `check_attention` does, and when it cannot be shared out over several devices.
    """
    if name == NATIVE_ATTENTION:
        return
    check_attention(name)
    try:
        transformer.set_attention_backend(name)
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError("attention", f"The attention “{name}” cannot be used: {_shorten(error)}.") from error


def _find_fault(name: str) -> str | None:
    """Say what is in the way of a backend: a package that is missing, or what it says when it is tried."""
    backend = AttentionBackendName(name)
    try:
        _check_attention_backend_requirements(backend)
        if not name.endswith(FETCHED):
            _try(backend)
    except Exception as error:  # noqa: BLE001 - each is another package's code, and all that counts is that it fails
        return _shorten(error)
    return None


def _try(backend: AttentionBackendName) -> None:
    """Attend from a few tokens to themselves, in the shape and format of the real ones."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokens = torch.ones(1, 128, 2, 128, device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being slow in this little trial
        attended = dispatch_attention_fn(tokens, tokens, tokens, backend=backend)
    if not bool(attended.isfinite().all()):
        raise RuntimeError("it gives no numbers")


def _shorten(error: Exception) -> str:
    """Give the first line of a message, without its full stop."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first_line.rstrip(".")
