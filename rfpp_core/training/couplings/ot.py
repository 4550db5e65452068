"""Optimal transport within sets of M images: the assignment of least total squared distance.

    minimise  sum over i of ||x_i - z_pi(i)||^2  over the permutations pi of M noises

by SciPy's linear sum assignment, in O(M^3).  With M = batch it is minibatch OT-CFM (Pooladian et
al., arXiv 2304.14772; Tong et al., arXiv 2302.00482) with a permutation in the place of sampling
from the plan: every image and every noise is used once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rfpp_core.images.loader import Batch
from rfpp_core.training.couplings.matched import squared_distances


def ot(batches: Iterable[Batch], z: Tensor, classes: Tensor | None) -> Iterator[Tensor]:
    """For each batch, the noise of each of its images in the best assignment of all M.

    Args:
        batches: M images in all.
        z: M noises (M, *).
        classes: class of each noise, int64 (M,); each class is then assigned by itself.

    Yields:
        Positions in ``z``, int64 (B,).
    """
    found = list(batches)
    x = torch.cat([batch.x for batch in found])
    if classes is None:
        chosen = assignment(x, z)
    else:
        y = torch.cat([batch.y for batch in found if batch.y is not None])
        chosen = torch.empty_like(classes)
        for label in set(classes.tolist()):
            own, slots = torch.nonzero(y == label)[:, 0], torch.nonzero(classes == label)[:, 0]
            chosen[own] = slots[assignment(x[own], z[slots])]
    yield from torch.split(chosen, [len(batch.x) for batch in found])


def assignment(x: Tensor, z: Tensor) -> Tensor:
    """The permutation pi, int64 (M,), that minimises ``sum ||x_i - z_pi(i)||^2``; (M, *) both."""
    from scipy.optimize import linear_sum_assignment  # slow to load, and seldom needed

    distances = squared_distances(x, z).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(distances)[1]).to(z.device)
