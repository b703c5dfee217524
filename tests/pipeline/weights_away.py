"""Follows diffusers' group offload without a card, where nothing moves: which weights would be away, and are used."""

from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WeightsAway(TorchDispatchMode):
    """Made before a model's offload is enabled, entered for a run.

    away: the weights that wait elsewhere now. missed: names of those an operation took while they did.
    """

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self.away: set[nn.Parameter] = set()
        self.missed: set[str] = set()
        fetch, send_away = ModuleGroup.onload_, ModuleGroup.offload_

        def note_fetched(group: ModuleGroup) -> None:
            fetch(group)
            self.away -= _weights(group)

        def note_sent_away(group: ModuleGroup) -> None:
            send_away(group)
            self.away |= _weights(group) & self._names.keys()

        monkeypatch.setattr(ModuleGroup, "onload_", note_fetched)
        monkeypatch.setattr(ModuleGroup, "offload_", note_sent_away)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note which weights among an operation's arguments are away."""
        if func is not torch.ops.aten.detach.default:  # moving a weight looks like this
            taken = {each for each in tree_leaves((args, kwargs)) if isinstance(each, nn.Parameter)}
            self.missed |= {self._names[weight] for weight in taken & self.away}
        return func(*args, **kwargs or {})


def _weights(group: ModuleGroup) -> set[nn.Parameter]:
    return {*group.parameters, *(weight for module in group.modules for weight in module.parameters())}
