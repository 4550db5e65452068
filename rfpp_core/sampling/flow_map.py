"""A trained flow map: a flow that is sampled by its own steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.model.flow_map import takes_end_time
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.solver_table import FLOW_MAP


class MapFlow(Flow):
    """A :class:`~rfpp_core.sampling.flow.Flow` whose default solver is ``flow-map``."""

    def sample(
        self,
        n: int,
        nfe: int = 1,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        sampler: SamplerConfig | None = None,
    ) -> Tensor:
        """As of any flow, but without ``sampler`` by ``nfe`` equal steps of the map."""
        return super().sample(n, nfe, seed, labels, sampler or SamplerConfig(FLOW_MAP, nfe))

    def invert(
        self, x: Tensor, sampler: SamplerConfig, labels: Sequence[int] | None = None
    ) -> Tensor:
        """As of any flow, by its velocity; the map itself leads one way.

        Raises:
            UserError: also if the solver is ``flow-map``.
        """
        if sampler.solver == FLOW_MAP:
            raise UserError(f"{FLOW_MAP} leads from noise to images alone; invert with euler, "
                            f"midpoint or heun, which use the velocity")  # fmt: skip
        return super().invert(x, sampler, labels)


def as_map(flow: Flow) -> Flow:
    """A flow map as a :class:`MapFlow`; another flow as it is."""
    if not takes_end_time(flow.field):
        return flow
    return MapFlow(flow.field, flow.shape, flow.classes, flow.digest, flow.metadata)
