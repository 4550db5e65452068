"""A trained flow between two sets of images: its state at t = 1 is an image, not noise.

Images of the source domain are translated by :meth:`Flow.decode`, from t = 1 to 0, and those of
the target back by :meth:`Flow.invert`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rfpp_core import rng
from rfpp_core.errors import UserError, quoted
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.flow_map import MapFlow


@dataclass(frozen=True)
class Transfer(MapFlow):
    """A :class:`~rfpp_core.sampling.flow.Flow` that starts from images.

    Attributes:
        source: images that take the place of drawn noise, float32 (N, C, H, W) in [-1, 1]; none
            by default, so that nothing can be drawn.
    """

    source: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def domains(self) -> dict[str, list[int]]:
        """Labels of the images of ``source`` and ``target``."""
        found: dict[str, list[int]] = self.metadata["domains"]
        return found

    @cached_property
    def source_digest(self) -> str:
        """sha256 of the source images."""
        return hashlib.sha256(self.source.contiguous().numpy().tobytes()).hexdigest()

    def states(self, key: int, index: Tensor) -> Tensor:
        """The source images with the numbers ``index`` (B,) of a key, on the device of ``index``.

        In the order of a permutation of all N, then of another one: so N of them are distinct.

        Raises:
            UserError: if the flow was given no source images.
        """
        n = len(self.source)
        if not n:
            raise UserError(self.refusal)
        device, index = index.device, index.cpu()
        orders = {epoch: rng.permutation(key, epoch, n) for epoch in set((index // n).tolist())}
        rows = [int(orders[i // n][i % n]) for i in index.tolist()]
        return self.source[rows].to(device)

    def sample(self, *_: Any, **__: Any) -> Tensor:
        """Refused: there is no noise to draw.

        Raises:
            UserError: always.
        """
        raise UserError(self.refusal)

    @property
    def refusal(self) -> str:
        """Why nothing can be drawn from noise."""
        source, target = (", ".join(map(str, self.domains[side])) for side in ("source", "target"))
        return (f"this flow translates images of classes {source} to classes {target}, and draws "
                f"none from noise; use `rfpp transfer IMAGES`")  # fmt: skip


def as_transfer(flow: Flow) -> Flow:
    """A flow whose model file names two domains as a :class:`Transfer`; another as it is.

    Raises:
        UserError: if they are not two lists of labels.
    """
    domains = flow.metadata.get("domains")
    if domains is None:
        return flow
    if not _are_domains(domains):
        raise UserError(f"the model file has domains {quoted(domains)}; they must be lists of "
                        f"labels, source and target")  # fmt: skip
    return Transfer(flow.field, flow.shape, flow.classes, flow.digest, flow.metadata)


def with_source(flow: Transfer, source: Tensor) -> Transfer:
    """The flow with images that take the place of drawn noise, float32 (N, C, H, W)."""
    return Transfer(flow.field, flow.shape, flow.classes, flow.digest, flow.metadata, source)


def _are_domains(found: Any) -> bool:
    if not isinstance(found, dict) or set(found) != {"source", "target"}:
        return False
    return all(isinstance(side, list) and side and all(isinstance(y, int) for y in side)
               for side in found.values())  # fmt: skip
