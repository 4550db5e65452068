"""Each test here takes a device: the CPU, at tiny size, and the first CUDA device where there is
one.  Wanted: torch, numpy, safetensors, pytest, zarr, pydantic, pillow, pyyaml, tqdm, filelock
(and lpips for its test); neither DVC nor Prefect."""

from __future__ import annotations

import pytest
import torch

from rfpp_core import runtime

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request):
    """A device set up as a training sets it up; what that changes is put back."""
    found = torch.device(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runtime.exact_training(found)
    yield found
    torch.use_deterministic_algorithms(False)
    runtime.exact()
    torch.set_num_threads(threads)
