"""The compact training core of RF++: tensors in, tensors out.

from rfpp_core import load_flow
flow = load_flow("models/flow2.safetensors")
images = flow.sample(n=16, nfe=1, seed=0)          # float (16, C, H, W), about in [-1, 1]

Imports run one way: ``interop -> config -> training | evaluation | pairs -> images | sampling ->
model | storage -> rng | runtime -> errors``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfpp_core.config.build import load_flow
    from rfpp_core.sampling.flow import Flow
    from rfpp_core.sampling.sampler import SamplerConfig

HOMES = {
    "Flow": "rfpp_core.sampling.flow",
    "SamplerConfig": "rfpp_core.sampling.sampler",
    "load_flow": "rfpp_core.config.build",
}
__all__ = ["Flow", "SamplerConfig", "load_flow"]


def __getattr__(name: str) -> Any:
    """Loads on first use: a worker must pin its device before anything imports torch."""
    from importlib import import_module

    if name not in HOMES:
        raise AttributeError(f"module 'rfpp_core' has no attribute '{name}'")
    return getattr(import_module(HOMES[name]), name)
