"""The training loop: a generator of step reports over a state that can be saved and resumed.

    state = TrainState(net, config, device)
    for report in train(state, batches, loss, config): ...

Everything random in a step is a function of (seed, step), so training k steps equals training
j, stopping, and resuming to k, bit for bit on a CPU with the same number of threads.  The loop
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
from rfpp_core.runtime import Rank, autocast, process_rank, seed
from rfpp_core.storage import optimizer
from rfpp_core.training import distributed, ema
from rfpp_core.training.losses import LossFunction
from rfpp_core.training.train_config import TrainConfig

# Updates skipped in a row that end a run: the loss scale of fp16 has then fallen from 65536 to
# 1/16, where only a gradient above 10^6 overflows.
MOST_SKIPS = 20


@dataclass(frozen=True)
class StepReport:
    """After ``step`` updates: mean loss terms since the last report; rate and gradient norm
    (before clipping) of the last update."""

    step: int
    terms: Mapping[str, float]
    lr: float
    grad_norm: float


class NonFiniteLoss(ArithmeticError):
    """The loss stopped being finite; the last saved state is good."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then constant or a cosine to 0.

    Update i of the warm-up has ``(i + 1) / warmup`` of the rate; from zero it has
    ``min(i, warmup - 1) / warmup``, so that the first moves nothing and the rate never quite
    reaches ``lr``.
    """
    begun = min(step, config.warmup - 1) if config.warmup_from_zero else step + 1
    rate = config.lr * (min(1.0, begun / config.warmup) if config.warmup else 1.0)
    if config.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return rate


def skips(config: TrainConfig) -> bool:
    """Whether updates whose gradient is not finite are skipped."""
    return config.nonfinite == "skip" or config.precision == "fp16"


class TrainState:
    """Weights, their average, the optimiser, the loss scaler and the number of updates."""

    def __init__(self, net: nn.Module, config: TrainConfig, device: torch.device) -> None:
        layout = torch.channels_last
        self.net = net.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).requires_grad_(False).eval()
        # listed once: a walk through the modules takes as long as a small network's operator
        self.parameters = list(self.net.parameters())
        self.averages = list(self.average.parameters())
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.device, self.step = device, 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the counters, by name."""
        named: dict[str, Tensor] = {}
        for prefix, module in (("net", self.net), ("ema", self.average)):
            named |= {f"{prefix}.{name}": t for name, t in module.state_dict().items()}
        return named | optimizer.tensors_of(self.optimizer)

    def metadata(self) -> dict[str, Any]:
        """The counters, as a JSON document."""
        return {"step": self.step, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Resumes from what :meth:`tensors` and :meth:`metadata` gave."""
        self.net.load_state_dict(optimizer.under("net.", tensors))
        self.average.load_state_dict(optimizer.under("ema.", tensors))
        optimizer.load(self.optimizer, tensors)
        if metadata["scaler"]:
            self.scaler.load_state_dict(metadata["scaler"])
        self.step = int(metadata["step"])


class Progress:
    """Sums since the last report; on the device, since reading them would stall every step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.skips, self.steps = skips(config), 0
        self.sums: dict[str, Tensor] = {}  # of each loss term
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.applied = torch.zeros((), device=device)  # updates that were not skipped
        self.in_a_row = self.longest = self.applied.clone()  # skipped: now, and at most

    def add(self, terms: Mapping[str, Tensor], finite: Tensor) -> None:
        """Adds the mean loss terms of an update, and whether it was finite."""
        self.finite &= finite
        self.applied += finite
        self.in_a_row = torch.where(finite, 0.0, self.in_a_row + 1)
        self.longest = torch.maximum(self.longest, self.in_a_row)
        if self.skips:
            terms = {name: torch.where(finite, x, 0.0) for name, x in terms.items()}
        self.sums = {name: self.sums.get(name, 0) + x for name, x in terms.items()}
        self.steps += 1

    def report(self, step: int, rate: float, norm: Tensor) -> StepReport:
        """The report after ``step`` updates, averaged over the processes; begins the next.

        Raises:
            NonFiniteLoss: if the run has to end.
        """
        between = f"between steps {step - self.steps} and {step}"
        count = float(self.applied) if self.skips else self.steps
        if self.skips and distributed.mean(self.longest) >= MOST_SKIPS:
            raise NonFiniteLoss(
                f"{MOST_SKIPS} updates in a row were not finite and were skipped, {between}"
            )
        if not self.skips and distributed.mean(self.finite.float()) < 1:
            raise NonFiniteLoss(f"the loss is not finite {between}")
        sums = {name: float(distributed.mean(x)) for name, x in self.sums.items()}
        means = {name: x / (count or math.nan) for name, x in sums.items()}
        self.sums, self.steps = {}, 0
        self.applied, self.longest = torch.zeros_like(self.applied), self.in_a_row.clone()
        return StepReport(step, means, rate, float(norm))


def train(
    state: TrainState, batches: Iterable[Batch], loss: LossFunction, config: TrainConfig
) -> Iterator[StepReport]:
    """Trains ``state`` in place up to ``config.steps`` updates.

    Args:
        state: where to start; its step must be that of the first batch.
        batches: those of steps ``state.step``, ``state.step + 1``, ...; with several processes,
            this one's slices of them.
        loss: gives named per-sample terms; the mean of their sum is minimised.
        config: how.

    Yields:
        A report every ``log_every`` updates and at the end; the state may be saved then.

    Raises:
        UserError: if a process's share of a batch does not divide into ``accumulate`` parts.
        NonFiniteLoss: at a report, instead of yielding it.
    """
    rank = process_rank()
    check_share(config, rank.world)
    net: nn.Module = torch.compile(state.net) if config.compile else state.net  # type: ignore[assignment]
    net = distributed.parallel(net, state.device)
    progress = Progress(config, state.device)
    state.net.train()
    for batch in batches:
        if state.step >= config.steps:
            return
        rate = learning_rate(config, state.step)
        terms, finite = _gradients(state, net, batch, loss, config, rank)
        norm = update(state, config, rate)
        applied = torch.isfinite(norm)
        progress.add(terms, applied if skips(config) else applied & finite)
        state.step += 1
        if state.step % config.log_every == 0 or state.step == config.steps:
            yield progress.report(state.step, rate, norm)


def _gradients(
    state: TrainState,
    net: nn.Module,
    batch: Batch,
    loss: LossFunction,
    config: TrainConfig,
    rank: Rank,
) -> tuple[dict[str, Tensor], Tensor]:
    """Computes the gradients of a batch, in ``accumulate`` parts.

    Returns:
        The batch's mean of each loss term, and whether all were finite.
    """
    own = "" if rank.first else f":{rank.rank}"
    seed(state.device, subkey(config.seed, f"dropout:{state.step}{own}"))
    state.optimizer.zero_grad(set_to_none=True)
    offset = rank.rank * len(batch.x)
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    sums: dict[str, Tensor] = {}
    for start, part in _parts(batch, config.accumulate):
        stop = start + len(part.x)
        place = (offset + start, offset + stop)  # in the global batch
        draws = StepRNG(config.seed, state.step, config.batch, *place, state.device)
        with distributed.unsynchronised(net, last=stop == len(batch.x)):
            with autocast(state.device, config.precision):
                terms = loss(net, part, state.step, draws)
            means = {name: t.float().mean() / config.accumulate for name, t in terms.items()}
            total = torch.stack(list(means.values())).sum()
            state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        finite &= torch.isfinite(total.detach())
        sums = {name: sums.get(name, 0) + mean.detach() for name, mean in means.items()}
    return sums, finite


def update(state: TrainState, config: TrainConfig, rate: float) -> Tensor:
    """One step of Adam, and of the average; the gradient norm before clipping."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    params = state.parameters
    state.scaler.unscale_(state.optimizer)
    align_gradients(params)
    norm = _clipped(params, config.clip)
    if skips(config) and not state.scaler.is_enabled():  # the scaler does it by itself
        setattr(state.optimizer, "found_inf", (~torch.isfinite(norm)).float())  # noqa: B010
    state.scaler.step(state.optimizer)
    state.scaler.update()
    decay = ema.decay_at(state.step, config.ema, config.ema_ramp)
    ema.update(state.averages, params, decay)
    return norm


def _clipped(params: list[nn.Parameter], most: float) -> Tensor:
    """Clips gradients to a norm, 0 for no limit; their norm before."""
    if most:
        return torch.nn.utils.clip_grad_norm_(params, most)
    return torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])


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
