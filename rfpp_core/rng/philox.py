"""Philox4x32-10: 32-bit words as a function of a counter and a key.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from torch import Tensor, zeros_like

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10


def philox(counter: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of 64-bit counters (int64, any shape) under a 64-bit key.

    Returns four int64 tensors of the same shape with values in [0, 2^32).
    """
    zero = zeros_like(counter)
    words = (counter & MASK, (counter >> 32) & MASK, zero, zero)
    return philox4x32(words, (key & MASK, (key >> 32) & MASK))


def philox4x32(
    c: tuple[Tensor, Tensor, Tensor, Tensor], k: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on four 32-bit words, each in an int64 tensor, with a key of two."""
    c0, c1, c2, c3 = c
    k0, k1 = k
    for _ in range(ROUNDS):
        p0, p1 = c0 * M0, c2 * M1  # 64 bits, in signed numbers that wrap
        c0, c2 = ((p1 >> 32) & MASK) ^ c1 ^ k0, ((p0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3
