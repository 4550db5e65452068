"""The values of a network's attention, watched or replaced while it computes.

Every attention here projects its input to queries, keys and values at once, by a 1x1 convolution
``qkv``, so the values are channels of that convolution's output.  A forward hook on it reaches
them: the networks know nothing of it, and without the hook they are what they were, in weights,
names and bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import NamedTuple

from torch import Tensor, nn

from rfpp_core.model.nets.edm_unet import UNetBlock
from rfpp_core.model.nets.layers import Attention

# Of a block's number and its values (B, C, H, W): the values to take instead, or None for these.
Handler = Callable[[int, Tensor], Tensor | None]


class Projection(NamedTuple):
    """The convolution of an attention block to queries, keys and values, and which of its
    channels are values."""

    qkv: nn.Module
    values: slice


def projections(net: nn.Module) -> list[Projection]:
    """Those of every attention block of a network, in the order of its modules."""
    found = []
    for module in net.modules():
        if isinstance(module, Attention):  # all queries, then all keys, then all values
            found.append(Projection(module.qkv, slice(module.qkv.out_channels * 2 // 3, None)))
        elif isinstance(module, UNetBlock) and module.heads:  # by threes, see `_attend`
            found.append(Projection(module.qkv, slice(2, None, 3)))
    return found


class ValueTap:
    """Lets handlers at the attention values of one network while it is open (``with tap:``).

    Several threads may call the network: each has the handler that it set itself, or none.

    Args:
        net: a network, or a field around one.

    Attributes:
        blocks: how many attention blocks it has.
    """

    def __init__(self, net: nn.Module) -> None:
        self._projections = projections(net)
        self._of_thread = threading.local()
        self._hooks: list[Callable[[], None]] = []
        self.blocks = len(self._projections)

    def __enter__(self) -> ValueTap:
        for block, (qkv, values) in enumerate(self._projections):
            hook = qkv.register_forward_hook(partial(self._hook, block, values))
            self._hooks.append(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._hooks:
            self._hooks.pop()()

    @contextmanager
    def handled(self, handler: Handler | None) -> Iterator[None]:
        """Sets the handler of this thread's calls of the network; None for none."""
        before = getattr(self._of_thread, "handler", None)
        self._of_thread.handler = handler
        try:
            yield
        finally:
            self._of_thread.handler = before

    def _hook(
        self, block: int, values: slice, _qkv: nn.Module, _args: object, out: Tensor
    ) -> Tensor | None:
        """The projection's output with other values, or None to leave it alone."""
        handler: Handler | None = getattr(self._of_thread, "handler", None)
        taken = None if handler is None else handler(block, out[:, values])
        if taken is None:
            return None
        out = out.clone()  # in its memory layout, on which the bits of what follows depend
        out[:, values] = taken
        return out
