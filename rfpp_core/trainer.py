"""The training loop: a generator of step reports over a state that can be saved and taken up.

    state = TrainState.start(net, config, device)
    for report in train(state, batches, loss, config): ...

Everything random in a step is a function of (seed, step), so ``train k steps`` equals
``train j, stop, resume to k`` bit for bit on a CPU with the same number of threads.  The loop
knows neither files nor params nor the terminal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core import distributed, ema, optimizer
from rfpp_core.couplings import Batch
from rfpp_core.noise import Draws, subkey

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


# (net, batch, step, draws) -> named per-sample terms (B,), whose mean sum is minimised
LossFunction = Callable[[nn.Module, Batch, int, Draws], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the fields are those of the params sections of the same names."""

    seed: int
    steps: int
    batch: int
    lr: float
    warmup: int = 0
    decay: str = "constant"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.999
    ema_ramp: bool = True
    precision: str = "fp32"
    compile: bool = False
    log_every: int = 50

    def lr_at(self, step: int) -> float:
        """Rate of update ``step`` (from 0): linear warm-up, then constant or a cosine to 0."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rate


@dataclass(frozen=True)
class StepReport:
    """After ``step`` updates: mean loss terms since the last report, rate, gradient norm."""

    step: int
    terms: Mapping[str, float]
    lr: float
    grad_norm: float


class NonFiniteLoss(ArithmeticError):
    """The loss stopped being finite; the last saved state is good."""


class TrainState:
    """Raw weights, their average, the optimiser, the loss scaler and the number of updates."""

    def __init__(self, net: nn.Module, config: TrainConfig, device: torch.device) -> None:
        layout = torch.channels_last
        self.net = net.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.device, self.step = device, 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything but counters, by name."""
        named: dict[str, Tensor] = {}
        for prefix, module in (("net", self.net), ("ema", self.average)):
            named |= {f"{prefix}.{name}": t for name, t in module.state_dict().items()}
        return named | optimizer.tensors_of(self.optimizer)

    def about(self) -> dict[str, Any]:
        """The counters, as a JSON document."""
        return {"step": self.step, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Resumes a state saved by :meth:`tensors` and :meth:`about`."""
        self.net.load_state_dict(optimizer.under("net.", tensors))
        self.average.load_state_dict(optimizer.under("ema.", tensors))
        optimizer.load(self.optimizer, tensors)
        if about["scaler"]:
            self.scaler.load_state_dict(about["scaler"])
        self.step = int(about["step"])


def train(
    state: TrainState, batches: Iterable[Batch], loss: LossFunction, config: TrainConfig
) -> Iterator[StepReport]:
    """Trains ``state`` in place up to ``config.steps`` updates.

    Args:
        state: where to start; its step must be that of the first batch.
        batches: the batches of steps ``state.step``, ``state.step + 1``, ...; of several
            processes, this one's slices of them.
        loss: see ``LossFunction``.
        config: how.

    Yields:
        A report every ``log_every`` updates and at the end; the state may be saved then.

    Raises:
        NonFiniteLoss: at a report, before it is yielded.
    """
    rank = distributed.here()
    net: nn.Module = torch.compile(state.net) if config.compile else state.net  # type: ignore[assignment]
    net = distributed.parallel(net, state.device)
    params, averages = list(state.net.parameters()), list(state.average.parameters())
    dtype = PRECISIONS.get(config.precision)
    seen = 0
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    sums: dict[str, Tensor] = {}
    state.net.train()
    for batch in batches:
        if state.step >= config.steps:
            return
        step, rate = state.step, config.lr_at(state.step)
        own = "" if rank.first else f":{rank.rank}"
        torch.manual_seed(subkey(config.seed, f"dropout:{step}{own}"))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        offset = rank.rank * len(batch.x)
        for start, part in _parts(batch, config.accumulate):
            stop = start + len(part.x)
            draws = Draws(
                config.seed, step, config.batch, offset + start, offset + stop, state.device
            )
            with distributed.unsynchronised(net, whole=stop == len(batch.x)):
                with torch.autocast(state.device.type, dtype, enabled=dtype is not None):
                    terms = loss(net, part, step, draws)
                means = {name: t.float().mean() / config.accumulate for name, t in terms.items()}
                total = torch.stack(list(means.values())).sum()
                state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            finite &= torch.isfinite(total.detach())
            sums = {name: sums.get(name, 0) + mean.detach() for name, mean in means.items()}
        state.scaler.unscale_(state.optimizer)
        limit = config.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(params, limit)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        ema.update(averages, params, ema.decay_at(step, config.ema, config.ema_ramp))
        if not state.scaler.is_enabled():  # a scaler skips such an update by itself
            finite &= torch.isfinite(norm)
        state.step, seen = step + 1, seen + 1
        if state.step % config.log_every == 0 or state.step == config.steps:
            if distributed.mean(finite.float()) < 1:
                raise NonFiniteLoss(f"the loss is not finite between steps "
                                    f"{state.step - seen} and {state.step}")  # fmt: skip
            means_now = {name: float(distributed.mean(x)) / seen for name, x in sums.items()}
            yield StepReport(state.step, means_now, rate, float(norm))
            sums, seen = {}, 0


def _parts(batch: Batch, count: int) -> Iterator[tuple[int, Batch]]:
    """A batch in equal parts, each with the position of its first sample."""
    size = len(batch.x) // count
    for start in range(0, len(batch.x), size):
        part = slice(start, start + size)
        y = None if batch.y is None else batch.y[part]
        yield start, Batch(batch.x[part], batch.position[part], y)
