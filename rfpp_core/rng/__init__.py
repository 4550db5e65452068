"""Counter-based random numbers: every draw is a function of (seed, purpose, index).

    words(i) = Philox4x32-10(counter = (i << 20) + block, key = seed)            (64-bit counter)
    noise(i) = Box-Muller of the words in float64, rounded to float32

``box_muller`` defines the noise, by operations that have the same bits everywhere; ``cpu`` and
``cuda`` compute it faster, and are used once they gave the definition's bits on the device.

The noise of pairs has the user's seed as its key, so that a store can name it; every other
purpose has the key ``sha256("seed:purpose")``.  Labels take block 2^19 of a pair's counter, which
noise (at most 2^19 blocks, two million values) never reaches.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from rfpp_core.rng import box_muller, cpu
from rfpp_core.rng.philox import philox

SCHEME = "philox4x32-10/bm-f64p/v1"
LABEL_BLOCK = 1 << 19
MAX_VALUES = 4 * LABEL_BLOCK
AHEAD, AHEAD_VALUES = 64, 1 << 15  # training steps whose times are drawn at once, and values
Draw = Callable[[int, str, int, int, int, torch.device], Tensor]


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
    return _fastest(index.device.type)(key, index, size).reshape(len(index), *shape)


@cache
def _fastest(kind: str) -> Callable[[int, Tensor, int], Tensor]:
    """The fastest implementation on a kind of device, if it has the definition's bits there."""
    index, wrong = torch.tensor([0, 1, 999, 2**33 + 7], device=kind), "has other bits here"
    try:
        fast = cpu.normal if kind == "cpu" else _cuda()
        if torch.equal(fast(12345, index, 3074), box_muller.normal(12345, index, 3074)):
            return fast
    except ImportError:
        if kind == "cpu":  # no C compiler was there: a run hardly takes longer
            return box_muller.normal
        wrong = "needs Triton"
    except Exception as error:  # whatever a compiler says that is missing or does not fit
        wrong = f"does not run here ({type(error).__name__})"
    warnings.warn(f"the fast noise on {kind} {wrong}; the slow one is used", stacklevel=2)
    return box_muller.normal


def _cuda() -> Callable[[int, Tensor, int], Tensor]:
    from rfpp_core.rng import cuda  # which needs Triton

    return cuda.normal


def uniform(key: int, index: Tensor) -> Tensor:
    """Uniform float64 draws in (0, 1), shape (B,): ``(w + 1/2) / 2^32`` of the first word."""
    return (philox(index << 20, key)[0].double() + 0.5) * 2.0**-32


def labels(key: int, index: Tensor, classes: int) -> Tensor:
    """Uniform class labels ``(w * classes) >> 32`` in [0, classes), int64 (B,)."""
    return (philox((index << 20) + LABEL_BLOCK, key)[0] * classes) >> 32


def permutation(key: int, epoch: int, n: int) -> Tensor:
    """A permutation of range(n), int64 (n,): the order of n random integers of 63 bits."""
    return _permutations(key, torch.tensor([epoch]), n)[0]


def _permutations(key: int, epochs: Tensor, n: int) -> Tensor:
    """Those of several epochs, int64 (E,) -> (E, n)."""
    w0, w1, _, _ = philox(torch.arange(n, dtype=torch.int64) + (epochs << 32)[:, None], key)
    return torch.argsort((w0 << 31) ^ w1, dim=1, stable=True)


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
        return self._drawn_ahead(uniform_rows, purpose)

    def antithetic(self, purpose: str) -> Tensor:
        """Like :meth:`uniform`, but about half of the values have their mirror image 1 - u in the
        batch: they are ``batch`` of the 2 ``batch`` values {u, 1 - u}, in random order."""
        return self._drawn_ahead(antithetic_rows, purpose)

    def _drawn_ahead(self, draw: Draw, purpose: str) -> Tensor:
        """This step's row of what ``draw`` gives for several steps at once."""
        steps = min(AHEAD, max(1, AHEAD_VALUES // self.batch))
        block, row = divmod(self.step, steps)
        device = self.device or torch.device("cpu")
        drawn = draw(self.seed, purpose, block * steps, steps, self.batch, device)
        return drawn[row, self.start : self.stop].clone()

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """float32 (B, *shape), standard normal."""
        return normal(subkey(self.seed, purpose), self.index, shape)


@lru_cache(maxsize=8)
def uniform_rows(
    seed: int, purpose: str, first: int, steps: int, batch: int, device: torch.device
) -> Tensor:
    """Of the steps from ``first``: float64 (steps, batch)."""
    index = torch.arange(steps * batch, dtype=torch.int64, device=device) + first * batch
    return uniform(subkey(seed, purpose), index).view(steps, batch)


@lru_cache(maxsize=8)
def antithetic_rows(
    seed: int, purpose: str, first: int, steps: int, batch: int, device: torch.device
) -> Tensor:
    """The same with mirror images, as :meth:`StepRNG.antithetic` says."""
    epochs = torch.arange(first, first + steps)
    slot = _permutations(subkey(seed, f"{purpose} order"), epochs, 2 * batch)[:, :batch].to(device)
    u = uniform_rows(seed, purpose, first, steps, batch, device).gather(1, slot % batch)
    return torch.where(slot < batch, u, 1 - u)
