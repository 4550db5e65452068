"""The training loop: a generator of step reports over a state that can be saved and resumed.

    state = TrainState.start(net, config, device)
    for report in train(state, batches, loss, config): ...

Everything random in a step is a function of (seed, step), so ``train k steps`` equals
``train j, stop, resume to k`` bit for bit on a CPU with the same number of threads.  The loop
knows neither files nor params nor the terminal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfpp_core.errors import UserError
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG, subkey
from rfpp_core.runtime import process_rank
from rfpp_core.storage import optimizer
from rfpp_core.training import distributed, ema
from rfpp_core.training.losses import LossFunction

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
# updates skipped in a row that end a run: the scaler of fp16 has then gone from 65536 down to
# 1/16, where a gradient overflows above 10^6
MOST_SKIPS = 20


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the fields are those of the params sections of the same names.

    ``nonfinite: skip`` leaves out an update whose gradient is not finite, as fp16's loss scaler
    always does.  ``warmup_from_zero`` is the warm-up of the RF++ runs (see :meth:`lr_at`).
    """

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
    warmup_from_zero: bool = False
    nonfinite: str = "stop"

    @property
    def skips(self) -> bool:
        """Whether updates whose gradient is not finite are skipped."""
        return self.nonfinite == "skip" or self.precision == "fp16"

    def lr_at(self, step: int) -> float:
        """Rate of update ``step`` (from 0): linear warm-up, then constant or a cosine to 0.

        From zero update i has ``min(i, warmup - 1) / warmup`` of the rate, so the first moves
        nothing and the rate stays a step short of ``lr``.
        """
        begun = min(step, self.warmup - 1) if self.warmup_from_zero else step + 1
        rate = self.lr * (min(1.0, begun / self.warmup) if self.warmup else 1.0)
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


class Health:
    """Whether updates are finite, kept on the device: reading it there would stall the step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.skips = config.skips
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.row, self.worst, self.good = (torch.zeros((), device=device) for _ in range(3))

    def note(self, finite: Tensor) -> None:
        """Takes in whether an update was finite."""
        self.finite &= finite
        self.row = torch.where(finite, 0.0, self.row + 1)
        self.worst = torch.maximum(self.worst, self.row)
        self.good += finite

    def check(self, first: int, last: int) -> None:
        """Begins the next report; raises :class:`NonFiniteLoss` if the run is to end."""
        if self.skips and distributed.mean(self.worst) >= MOST_SKIPS:
            raise NonFiniteLoss(f"{MOST_SKIPS} updates in a row were not finite and were skipped, "
                                f"between steps {first} and {last}")  # fmt: skip
        if not self.skips and distributed.mean(self.finite.float()) < 1:
            raise NonFiniteLoss(f"the loss is not finite between steps {first} and {last}")
        self.worst, self.good = self.row.clone(), torch.zeros_like(self.good)


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

    def metadata(self) -> dict[str, Any]:
        """The counters, as a JSON document."""
        return {"step": self.step, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Resumes a state saved by :meth:`tensors` and :meth:`about`."""
        self.net.load_state_dict(optimizer.under("net.", tensors))
        self.average.load_state_dict(optimizer.under("ema.", tensors))
        optimizer.load(self.optimizer, tensors)
        if metadata["scaler"]:
            self.scaler.load_state_dict(metadata["scaler"])
        self.step = int(metadata["step"])


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
        UserError: if a process's share of a batch does not divide into ``accumulate`` parts.
        NonFiniteLoss: at a report, before it is yielded.
    """
    rank = process_rank()
    check_share(config, rank.world)
    net: nn.Module = torch.compile(state.net) if config.compile else state.net  # type: ignore[assignment]
    net = distributed.parallel(net, state.device)
    params, averages = list(state.net.parameters()), list(state.average.parameters())
    dtype = PRECISIONS.get(config.precision)
    health, seen = Health(config, state.device), 0
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
        finite = torch.ones((), dtype=torch.bool, device=state.device)
        now: dict[str, Tensor] = {}
        for start, part in _parts(batch, config.accumulate):
            stop = start + len(part.x)
            draws = StepRNG(
                config.seed, step, config.batch, offset + start, offset + stop, state.device
            )
            with distributed.unsynchronised(net, whole=stop == len(batch.x)):
                with torch.autocast(state.device.type, dtype, enabled=dtype is not None):
                    terms = loss(net, part, step, draws)
                means = {name: t.float().mean() / config.accumulate for name, t in terms.items()}
                total = torch.stack(list(means.values())).sum()
                state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            finite &= torch.isfinite(total.detach())
            now = {name: now.get(name, 0) + mean.detach() for name, mean in means.items()}
        state.scaler.unscale_(state.optimizer)
        align_gradients(params)
        norm = torch.nn.utils.clip_grad_norm_(params, config.clip or math.inf)
        good = torch.isfinite(norm)
        if config.skips and not state.scaler.is_enabled():  # the scaler does it by itself
            setattr(state.optimizer, "found_inf", (~good).float())  # noqa: B010
        state.scaler.step(state.optimizer)
        state.scaler.update()
        ema.update(averages, params, ema.decay_at(step, config.ema, config.ema_ramp))
        health.note(good if config.skips else good & finite)
        if config.skips:
            now = {name: torch.where(good, x, 0.0) for name, x in now.items()}
        sums = {name: sums.get(name, 0) + x for name, x in now.items()}
        state.step, seen = step + 1, seen + 1
        if state.step % config.log_every == 0 or state.step == config.steps:
            count = float(health.good) if config.skips else seen
            health.check(state.step - seen, state.step)
            means_now = {name: float(distributed.mean(x)) / (count or math.nan)
                         for name, x in sums.items()}  # fmt: skip
            yield StepReport(state.step, means_now, rate, float(norm))
            sums, seen = {}, 0


def check_share(config: TrainConfig, processes: int) -> None:
    """Refuses parts of unequal size, which would weigh gradients wrongly.

    Raises:
        UserError: if (batch / processes) is not a multiple of accumulate.
    """
    share, rest = divmod(config.batch, processes)
    if not rest and share % config.accumulate:  # the loader refuses an uneven share
        raise UserError(
            f"batch ({config.batch}) is {share} images for each of {processes} processes, which "
            f"is not a multiple of accumulate ({config.accumulate}); change one of the three"
        )


def align_gradients(params: Iterable[Tensor]) -> None:
    """Gives gradients the memory layout of their parameters, which fused Adam takes for granted
    (compiled 1x1 and transposed convolutions may return another)."""
    for p in params:
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


def _parts(batch: Batch, count: int) -> Iterator[tuple[int, Batch]]:
    """A batch in equal parts, each with the position of its first sample."""
    size = len(batch.x) // count
    for start in range(0, len(batch.x), size):
        part = slice(start, start + size)
        y = None if batch.y is None else batch.y[part]
        yield start, Batch(batch.x[part], batch.position[part], y)
