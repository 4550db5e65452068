"""The compact training core of RF++: tensors in, tensors out.

from rfpp_core import load_flow
flow = load_flow("models/flow2.safetensors")
images = flow.sample(n=16, nfe=1, seed=0)          # float (16, C, H, W), about in [-1, 1]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfpp_core.config.build import load_flow
    from rfpp_core.sampling.sampler import Flow, Recipe

__all__ = ["Flow", "Recipe", "load_flow"]


def __getattr__(name: str) -> Any:
    """Loads on first use: a worker must pin its device before anything imports torch."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'rfpp_core' has no attribute '{name}'")
    return getattr(
        import_module(
            f"rfpp_core.{'config.build' if name == 'load_flow' else 'sampling.sampler'}"
        ),
        name,
    )
