"""Counter-based random numbers: every draw is a function of (seed, purpose, index).

    words(i) = Philox4x32-10(counter = (i << 20) + block, key = seed)            (64-bit counter)
    noise(i) = Box-Muller of the words in float64, rounded to float32

Box-Muller is made of frexp, +, -, *, /, sqrt, floor and where alone, each correctly rounded, so
the same (seed, i) gives the same bits on any CPU and with any build of torch; the log and cos of
libraries differ in the last bit between processors.  Philox: Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011.

The noise of pairs has the user's seed as its key, so that a store can name it; every other
purpose has the key ``sha256("seed:purpose")``.  Labels take block 2^19 of a pair's counter, which
noise (at most 2^19 blocks, two million values) never reaches.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEME = "philox4x32-10/bm-f64p/v1"
LABEL_BLOCK = 1 << 19
MAX_VALUES = 4 * LABEL_BLOCK

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_LN2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476


def philox(counter: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of 64-bit counters (int64, any shape) under a 64-bit key.

    Returns four int64 tensors of the same shape with values in [0, 2^32).
    """
    return philox4x32(
        (
            counter & _MASK,
            (counter >> 32) & _MASK,
            torch.zeros_like(counter),
            torch.zeros_like(counter),
        ),
        (key & _MASK, (key >> 32) & _MASK),
    )


def philox4x32(
    c: tuple[Tensor, Tensor, Tensor, Tensor], k: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on four 32-bit words, each in an int64 tensor, with a key of two."""
    c0, c1, c2, c3 = c
    k0, k1 = k
    for _ in range(10):
        hi0, lo0 = _mul(c0, _M0)
        hi1, lo1 = _mul(c2, _M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _mul(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32x32-bit product, without leaving signed 64 bits."""
    low, high = a * (m & 0xFFFF), a * (m >> 16)  # each below 2^48
    total = (high & 0xFFFF_FFFF) * 0x10000 + low  # below 2^48 * 2, exact
    carry = high >> 32
    return ((total >> 32) + (carry << 16)) & _MASK, total & _MASK


def subkey(seed: int, purpose: str) -> int:
    """The 64-bit key of a purpose other than pair noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big")


def normal(key: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of the given indices.

    Args:
        key: the 64-bit key.
        index: int64 tensor (B,), each in [0, 2^43).
        shape: shape of one draw, at most 2^21 values.

    Returns:
        float32 tensor (B, *shape) on the device of ``index``.

    Raises:
        ValueError: if one draw has more values than its counter range holds.
    """
    size = math.prod(shape)
    if size > MAX_VALUES:
        raise ValueError(f"a draw of {size} values exceeds the counter's {MAX_VALUES}")
    w0, w1, w2, w3 = philox(_counters(index, -(-size // 4)), key)
    z = torch.stack((*_box_muller(w0, w1), *_box_muller(w2, w3)), dim=-1)
    return z.flatten(1)[:, :size].float().reshape(len(index), *shape)


def uniform(key: int, index: Tensor) -> Tensor:
    """Uniform float64 draws in (0, 1), shape (B,): ``(w + 1/2) / 2^32`` of the first word."""
    return (philox(index << 20, key)[0].double() + 0.5) * 2.0**-32


def labels(key: int, index: Tensor, classes: int) -> Tensor:
    """Uniform class labels ``(w * classes) >> 32`` in [0, classes), int64 (B,)."""
    return (philox((index << 20) + LABEL_BLOCK, key)[0] * classes) >> 32


def permutation(key: int, epoch: int, n: int) -> Tensor:
    """A permutation of range(n), int64 (n,): the order of n random integers of 63 bits."""
    blocks = torch.arange(n, dtype=torch.int64) + (epoch << 32)
    w0, w1, _, _ = philox(blocks, key)
    return torch.argsort((w0 << 31) ^ w1, stable=True)


def _counters(index: Tensor, blocks: int) -> Tensor:
    block = torch.arange(blocks, dtype=torch.int64, device=index.device)
    return (index.to(torch.int64) << 20)[:, None] + block


@dataclass(frozen=True)
class StepRNG:
    """The random numbers of one training step, for the samples [start, stop) of the batch.

    A draw depends on (seed, purpose, step, position in the global batch) alone, so neither a
    restart nor the number of processes changes it.

    Attributes:
        seed: of the training.
        step: number of the update, from 0.
        batch: size of the global batch.
        start, stop: samples of the global batch that this process draws for; all by default.
        device: where the numbers are drawn.
    """

    seed: int
    step: int
    batch: int
    start: int = 0
    stop: int | None = None
    device: torch.device | None = None

    @property
    def index(self) -> Tensor:
        """The counter of each sample, int64 (stop - start,)."""
        stop = self.batch if self.stop is None else self.stop
        position = torch.arange(self.start, stop, dtype=torch.int64, device=self.device)
        return position + self.step * self.batch

    def uniform(self, purpose: str) -> Tensor:
        """float64 (B,) in (0, 1)."""
        return uniform(subkey(self.seed, purpose), self.index)

    def antithetic(self, purpose: str) -> Tensor:
        """Like :meth:`uniform`, but about half of the values have their mirror image 1 - u in the
        batch: they are ``batch`` of the 2 ``batch`` values {u, 1 - u}, in random order."""
        key = subkey(self.seed, f"{purpose} order")
        stop = self.batch if self.stop is None else self.stop
        slot = permutation(key, self.step, 2 * self.batch)[self.start : stop].to(self.device)
        u = uniform(subkey(self.seed, purpose), slot % self.batch + self.step * self.batch)
        return torch.where(slot < self.batch, u, 1 - u)

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """float32 (B, *shape), standard normal."""
        return normal(subkey(self.seed, purpose), self.index, shape)


def _box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words: radius from the first, angle from the second."""
    r = torch.sqrt(-2.0 * _log((w0.double() + 0.5) * 2.0**-32))
    angle = w1.double() * 2.0**-30  # quadrants, in [0, 4)
    quadrant = torch.floor(angle + 0.5)
    cos, sin = _cos_sin((angle - quadrant) * (math.pi / 2))
    q = quadrant.to(torch.int64) & 3
    swap, neg_c, neg_s = (q & 1) == 1, (q == 1) | (q == 2), q >= 2
    c, s = torch.where(swap, sin, cos), torch.where(swap, cos, sin)
    return r * torch.where(neg_c, -c, c), r * torch.where(neg_s, -s, s)


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float64: exponent plus ten terms of 2 atanh(y)."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < _ROOT_HALF
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent.double() - small.double()
    y = (mantissa - 1.0) / (mantissa + 1.0)  # |y| <= 0.1716
    y2 = y * y
    series = torch.zeros_like(y)
    for k in range(19, -1, -2):
        series = series * y2 + 1.0 / k
    return exponent * _LN2 + 2.0 * y * series


def _cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for |x| <= pi / 4 by their Taylor series, float64."""
    x2 = x * x
    cos, sin = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(18, -1, -2):
        cos = 1.0 / math.factorial(k) - cos * x2
        sin = 1.0 / math.factorial(k + 1) - sin * x2
    return cos, sin * x
