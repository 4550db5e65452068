"""How to train, as plain values.

Identities do not follow this module (``pipeline.work.identity``), so that a new field with a
default invalidates no finished training.  Functions of the config are in ``trainer``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Options of the training loop.

    All but ``seed`` are those of the same name of a recipe, which documents them with their
    ranges (``config.recipe.Recipe``).

    Attributes:
        seed: of the training's own random numbers.
        steps: updates in all.
        batch: images of an update, over all processes.
        lr: learning rate after warm-up; see ``trainer.learning_rate``.
        warmup: updates of linear warm-up.
        warmup_from_zero: whether the first update has a rate of 0, as in the RF++ runs.
        decay: "constant" or "cosine", after warm-up.
        beta1, beta2, eps: of Adam.
        clip: limit of the gradient norm, 0 for none.
        accumulate: parts of a batch whose gradients are added up.
        ema: decay of the average of the weights.
        ema_ramp: whether that decay rises from 1/10.
        precision: "fp32", "tf32", "bf16" or "fp16".
        compile: whether the network is compiled.
        log_every: updates between two reports.
        nonfinite: "stop", or "skip" to leave out an update whose gradient is not finite, as the
            loss scaler of fp16 always does.
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
