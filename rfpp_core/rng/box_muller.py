"""The definition of the noise: Box-Muller of Philox's words, in float64, rounded to float32.

It is made of frexp, +, -, *, /, sqrt, floor and where alone, each correctly rounded, so the same
words give the same bits on any CPU and with any build of torch; the log and cos of libraries
differ in the last bit between processors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rfpp_core.rng.philox import philox

LN2 = 0.6931471805599453
ROOT_HALF = 0.7071067811865476
LOG_TERMS = range(19, -1, -2)  # k of the terms y^k / k of atanh, highest first
COS_TERMS = range(18, -1, -2)  # k of the terms x^k / k! of the cosine


def normal(key: int, index: Tensor, size: int) -> Tensor:
    """``size`` standard normal values of each index: int64 (B,) -> float32 (B, size)."""
    blocks = torch.arange(-(-size // 4), dtype=torch.int64, device=index.device)
    w0, w1, w2, w3 = philox((index.to(torch.int64) << 20)[:, None] + blocks, key)
    z = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=-1)
    return z.flatten(1)[:, :size].float()


def box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words: radius from the first, angle from the second."""
    r = torch.sqrt(-2.0 * log((w0.double() + 0.5) * 2.0**-32))
    angle = w1.double() * 2.0**-30  # quadrants, in [0, 4)
    quadrant = torch.floor(angle + 0.5)
    cos, sin = cos_sin((angle - quadrant) * (math.pi / 2))
    q = quadrant.to(torch.int64) & 3
    swap, neg_c, neg_s = (q & 1) == 1, (q == 1) | (q == 2), q >= 2
    c, s = torch.where(swap, sin, cos), torch.where(swap, cos, sin)
    return r * torch.where(neg_c, -c, c), r * torch.where(neg_s, -s, s)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float64: exponent plus ten terms of 2 atanh(y)."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < ROOT_HALF
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent.double() - small.double()
    y = (mantissa - 1.0) / (mantissa + 1.0)  # |y| <= 0.1716
    y2 = y * y
    series = torch.zeros_like(y)
    for k in LOG_TERMS:
        series = series * y2 + 1.0 / k
    return exponent * LN2 + 2.0 * y * series


def cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for |x| <= pi / 4 by their Taylor series, float64."""
    x2 = x * x
    cos, sin = torch.zeros_like(x), torch.zeros_like(x)
    for k in COS_TERMS:
        cos = 1.0 / math.factorial(k) - cos * x2
        sin = 1.0 / math.factorial(k + 1) - sin * x2
    return cos, sin * x
