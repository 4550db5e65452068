"""The fast noise has the bits of its definition, on a CPU and in the kernel for CUDA."""

import importlib.util
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfpp_core import rng
from rfpp_core.rng import box_muller, cpu

KEYS = st.integers(0, 2**64 - 1)
INDICES = st.lists(st.integers(0, 2**43 - 1), min_size=1, max_size=40)
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="noise.c was not compiled without a C compiler"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@needs_compiler
@given(key=KEYS, index=INDICES, size=st.integers(1, 5000))
@settings(max_examples=80, deadline=None)
def test_on_a_cpu(key, index, size):
    index = torch.tensor(index)
    assert torch.equal(cpu.normal(key, index, size), box_muller.normal(key, index, size))


@needs_compiler
def test_in_many_draws_and_in_one_long_draw():
    for index, size in ((torch.arange(3000), 64), (torch.arange(2), 200_001)):
        assert torch.equal(cpu.normal(7, index, size), box_muller.normal(7, index, size))


@needs_compiler
def test_of_an_index_that_is_a_view():
    index = torch.arange(20).view(10, 2)[:, 1]
    assert torch.equal(cpu.normal(7, index, 64), box_muller.normal(7, index, 64))


@needs_compiler
def test_the_fast_one_is_used():
    assert rng._fastest("cpu") is cpu.normal


def test_without_a_compiler_the_definition_is_used(monkeypatch):
    monkeypatch.setattr(cpu, "EXTENSION_SUFFIXES", [])
    cpu._compiled.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rng._fastest.__wrapped__("cpu") is box_muller.normal


def test_other_bits_are_not_used(monkeypatch):
    monkeypatch.setattr(cpu, "normal", lambda *given: torch.zeros(4, 3074))
    with pytest.warns(UserWarning, match="other bits"):
        assert rng._fastest.__wrapped__("cpu") is box_muller.normal


INTERPRETED = """
import torch
from rfpp_core.rng import box_muller, cuda
index = torch.tensor([0, 1, 999, 2**33 + 7, 2**43 - 1])
for key, size in ((12345, 3072), (2**63 + 12345, 1), (2**64 - 1, 1030)):
    assert torch.equal(cuda.normal(key, index, size), box_muller.normal(key, index, size))
"""


@needs_triton
def test_the_kernel_in_tritons_interpreter():
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True,
                   env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip


@needs_triton
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_kernel_has_no_fused_operation_and_no_rounded_constant(capability, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from rfpp_core.rng import cuda
    from rfpp_core.rng.philox import M0, M1, ROUNDS, W0, W1

    types = {"index": "*i64", "out": "*fp32", "constants": "*fp64"}
    types |= dict.fromkeys(("key0", "key1", "size"), "i32")
    values = {"m0": M0, "m1": M1, "w0": W0, "w1": W1, "rounds": ROUNDS, "terms": cuda.TERMS,
              "block": cuda.BLOCK}  # fmt: skip
    source = ASTSource(cuda.kernel, types | dict.fromkeys(values, "constexpr"), constexprs=values)
    target = GPUTarget("cuda", capability, 32)
    ptx = compile(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]
    assert "fma" not in ptx
    assert "div.rn.f64" in ptx
    assert "sqrt.rn.f64" in ptx


def test_times_drawn_ahead_are_those_of_the_step():
    index = torch.arange(8) + 70 * 8
    wanted = rng.uniform(rng.subkey(3, "t"), index)
    assert torch.equal(rng.StepRNG(3, 70, 8).uniform("t"), wanted)
    drawn = rng.StepRNG(3, 70, 8).uniform("t")
    drawn.zero_()  # what a caller does to its draws touches no other
    assert torch.equal(rng.StepRNG(3, 70, 8).uniform("t"), wanted)
    slot = rng.permutation(rng.subkey(3, "t order"), 70, 16)[:8]
    u = wanted[slot % 8]
    assert torch.equal(rng.StepRNG(3, 70, 8).antithetic("t"), torch.where(slot < 8, u, 1 - u))
