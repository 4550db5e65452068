"""The noise of ``box_muller``, to the bit, by one Triton kernel on a CUDA device.

Fused multiply-adds round once where the definition rounds twice, so they are off.  Constants are
read from a table, since Triton would round literals to float32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Kernels have the types of Triton's own language.

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rfpp_core.rng.box_muller import COS_TERMS, LN2, LOG_TERMS, ROOT_HALF
from rfpp_core.rng.philox import M0, M1, MASK, ROUNDS, W0, W1

BLOCK = 256  # Philox blocks of a program, four values each
CONSTANTS = (
    2.0**-32, 2.0**-30, ROOT_HALF, LN2, math.pi / 2,
    *(1.0 / k for k in LOG_TERMS),
    *(1.0 / math.factorial(k) for k in COS_TERMS),
    *(1.0 / math.factorial(k + 1) for k in COS_TERMS),
)  # fmt: skip
TERMS = len(LOG_TERMS)


def normal(key: int, index: Tensor, size: int) -> Tensor:
    """``size`` standard normal values of each index: int64 (B,) -> float32 (B, size)."""
    index = index.to(torch.int64).contiguous()
    out = torch.empty(len(index), size, device=index.device)
    grid = (len(index), triton.cdiv(size, 4 * BLOCK))
    halves = (_signed(key & MASK), _signed(key >> 32 & MASK))
    with torch.cuda.device_of(index):  # type: ignore[no-untyped-call]  # Triton's is the current
        kernel[grid](index, out, _constants(index.device), *halves, size,
                     M0, M1, W0, W1, ROUNDS, TERMS, BLOCK, enable_fp_fusion=False)  # fmt: skip
    return out


def _signed(word: int) -> int:
    """A 32-bit word as a signed number, so that the kernel is compiled for one type alone."""
    return word - (1 << 32) if word >> 31 else word


@cache
def _constants(device: torch.device) -> Tensor:
    return torch.tensor(CONSTANTS, dtype=torch.float64, device=device)


@triton.jit
def kernel(
    index, out, constants, key0, key1, size,
    m0: tl.constexpr, m1: tl.constexpr, w0: tl.constexpr, w1: tl.constexpr,
    rounds: tl.constexpr, terms: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Four values of each Philox block: program (i, j) makes blocks j * block, ... of index i."""
    at = tl.program_id(1) * block + tl.arange(0, block)
    counter = (tl.load(index + tl.program_id(0)) << 20) + at
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    k0, k1 = c2 + key0.to(tl.uint32), c2 + key1.to(tl.uint32)
    f0, f1 = tl.full([block], m0, tl.uint32), tl.full([block], m1, tl.uint32)
    s0, s1 = tl.full([block], w0, tl.uint32), tl.full([block], w1, tl.uint32)
    for _ in tl.static_range(rounds):
        high0, high1 = tl.umulhi(c0, f0), tl.umulhi(c2, f1)
        c1, c3, c0, c2 = c2 * f1, c0 * f0, high1 ^ c1 ^ k0, high0 ^ c3 ^ k1
        k0, k1 = k0 + s0, k1 + s1
    row, first = out + tl.program_id(0).to(tl.int64) * size, 4 * at
    z0, z1 = _box_muller(constants, c0, c1, terms)
    z2, z3 = _box_muller(constants, c2, c3, terms)
    tl.store(row + first, z0, mask=first < size)
    tl.store(row + first + 1, z1, mask=first + 1 < size)
    tl.store(row + first + 2, z2, mask=first + 2 < size)
    tl.store(row + first + 3, z3, mask=first + 3 < size)


@triton.jit
def _box_muller(constants, a, b, terms: tl.constexpr):
    """Two float32 normals of two 32-bit words."""
    u = (a.to(tl.float64) + 0.5) * tl.load(constants)
    r = tl.sqrt(-2.0 * _log(constants, u, terms))
    angle = b.to(tl.float64) * tl.load(constants + 1)
    quadrant = tl.floor(angle + 0.5)
    x = (angle - quadrant) * tl.load(constants + 4)
    x2 = x * x
    cos, sin = tl.zeros_like(x), tl.zeros_like(x)
    for i in tl.static_range(terms):
        cos = tl.load(constants + 5 + terms + i) - cos * x2
        sin = tl.load(constants + 5 + 2 * terms + i) - sin * x2
    sin = sin * x
    q = quadrant.to(tl.int32) & 3
    c, s = tl.where((q & 1) == 1, sin, cos), tl.where((q & 1) == 1, cos, sin)
    c, s = tl.where((q == 1) | (q == 2), -c, c), tl.where(q >= 2, -s, s)
    return (r * c).to(tl.float32), (r * s).to(tl.float32)


@triton.jit
def _log(constants, x, terms: tl.constexpr):
    """Natural logarithm of positive normal float64."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022
    mantissa = (bits - (exponent << 52)).to(tl.float64, bitcast=True)  # in [1/2, 1), as of frexp
    small = mantissa < tl.load(constants + 2)
    mantissa = tl.where(small, mantissa * 2.0, mantissa)
    exponent = tl.where(small, exponent - 1, exponent).to(tl.float64)
    y = (mantissa - 1.0) / (mantissa + 1.0)
    y2 = y * y
    series = tl.zeros_like(y)
    for i in tl.static_range(terms):
        series = series * y2 + tl.load(constants + 5 + i)
    return exponent * tl.load(constants + 3) + 2.0 * y * series
