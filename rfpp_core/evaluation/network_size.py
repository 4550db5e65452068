"""The size of a network: parameters, and multiply-accumulates (MACs) of an evaluation.

A multiply-accumulate is one product and one sum.  Those of convolutions, matrix products and the
two products of attention are counted; normalisations, activations and sums are not.  Profilers
that skip attention give fewer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    """How many numbers the weights of a network are."""
    return sum(p.numel() for p in net.parameters())


def macs(field: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one evaluation of one image, counted while it runs.

    torch counts two floating point operations for each.  Attention is written out as matrix
    products, since not every fused kernel has a count.

    Args:
        field: ``(x (1, C, H, W), t (1,)) -> v``.
        shape: (C, H, W) of an image.
    """
    like = next(field.parameters())
    x, t = like.new_zeros(1, *shape), like.new_ones(1)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        field(x, t)
    return counter.get_total_flops() // 2
