"""The compact training core of RF++: tensors in, tensors out.

from rfpp_core import load_flow
flow = load_flow("models/flow2.safetensors")
images = flow.sample(n=16, nfe=1, seed=0)          # float (16, C, H, W), about in [-1, 1]
"""

from rfpp_core.build import load_flow
from rfpp_core.sampling import Flow, Recipe

__all__ = ["Flow", "Recipe", "load_flow"]
