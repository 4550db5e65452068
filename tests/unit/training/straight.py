"""A flow that is exactly straight, in closed form, for tests.

It carries each value z of the noise to ``T(z) = a sign(z) + b z``, so images of d values form 2^d
blobs.  On the path ``x_t = (1 - t) T(z) + t z`` the sign of x_t is that of z, which gives z and so
the velocity ``z - T(z)`` at any time.
"""

from __future__ import annotations

from torch import Tensor

from rfpp_core.model.path import like

A, B = 1.5, 0.3


def transported(z: Tensor) -> Tensor:
    """T(z)."""
    return A * z.sign() + B * z


def straight(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The velocity at x_t."""
    t = like(t, x)
    z = (x - (1 - t) * A * x.sign()) / ((1 - t) * B + t)
    return z - transported(z)
