"""An optimiser's state as named tensors, for a file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, named ``optimizer.<parameter>.<slot>``."""
    return {f"optimizer.{i}.{slot}": t
            for i, slots in optimizer.state_dict()["state"].items()
            for slot, t in slots.items()}  # fmt: skip


def load(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads what :func:`tensors_of` returned."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, t in under("optimizer.", tensors).items():
        i, slot = name.split(".")
        # fused Adam goes by memory: moments must have the memory layout of their parameter
        same = t.shape == params[int(i)].shape
        slots.setdefault(int(i), {})[slot] = (
            torch.empty_like(params[int(i)]).copy_(t) if same else t
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under their names without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
