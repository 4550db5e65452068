"""Each test here takes a device: the CPU, at tiny size, and the first CUDA device if there is one.

Without CUDA the second half is skipped; so is on the CPU what takes long there and another case
covers, unless GPU_TESTS_SLOW=1.  Packages: torch, numpy, safetensors and pytest; zarr, pydantic,
pillow, pyyaml, ruamel.yaml, tqdm, typer and filelock; lpips for its test.  Neither DVC nor
Prefect, scikit-learn or SciPy.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from rfpp_core import runtime

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request):
    """A device set up as a training sets it up; what that changes is restored."""
    found = torch.device(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if "torch._dynamo" in sys.modules:  # code that is compiled too often runs uncompiled
        torch.compiler.reset()
    runtime.exact_training(found)
    yield found
    torch.use_deterministic_algorithms(False)
    runtime.exact()
    torch.set_num_threads(threads)


@pytest.fixture
def spare_the_cpu(device):
    """Skips on a CPU what another case covers there: ``spare_the_cpu(unless=...)``."""

    def skip(unless: bool) -> None:
        if device.type == "cpu" and not unless and not os.environ.get("GPU_TESTS_SLOW"):
            pytest.skip("takes long on a CPU (GPU_TESTS_SLOW=1)")

    return skip
