"""The schema of ``params.yaml``: every option, its type and its range.

Sections are flat so that ``dvc exp run -S reflow.times.law=uniform`` works; an option that the
chosen law or loss does not use is legal and has no effect.  What cannot change a result (devices,
workers, log level, retries) is not a param: it comes from the environment.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rfpp_core.config import yaml_file
from rfpp_core.errors import UserError, quoted

Positive = Annotated[int, Field(gt=0, le=10**14)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0, le=4096)]
RoundName = Annotated[str, Field(pattern=r"^([2-9]|[1-9][0-9]{1,5})$")]
FlowName = Annotated[str, Field(pattern=r"^flow[1-9][0-9]{0,5}$")]
PathText = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # which no file name can hold
SolverName = Annotated[
    str,
    Field(pattern=r"^(euler|heun|midpoint|anchored(-heun)?|edm-heun|rk2:(0\.\d+|1(\.0+)?))$"),
]


_SHORT = Repr()  # of what a file gives, which may refer to itself
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Dataset(Section):
    """Real images and how they are split."""

    name: Literal["digits", "cifar10", "folder"] = "digits"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of split and feature net, apart from `seed`
    path: PathText = "data/raw"  # folder or zip of images; where CIFAR-10 is or goes
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # unless the set has a split of its own
    channels: Literal[1, 3] = 1
    resolution: Annotated[int, Field(ge=4, le=1024)] | None = None
    labels: PathText = "folders"  # class sub-folders, "none", or a CSV of name,label rows
    limit: Positive | None = None  # at most so many images, spread over the set
    skip_corrupt: bool = False


class Network(Section):
    """Architecture and preconditioning, shared by all flows of a run.

    ``ncsnpp``, ``ddpmpp`` and ``adm`` are EDM's networks; they attend at the sides in
    ``attention_resolutions`` and, as published, reserve weights for ``augment`` labels.
    """

    arch: Literal["small_unet", "ncsnpp", "ddpmpp", "adm"] = "small_unet"
    channels: Annotated[int, Field(ge=4, le=4096, multiple_of=4)] = 32  # see also `build.field`
    multipliers: Annotated[
        tuple[Annotated[int, Field(gt=0, le=64)], ...], Field(min_length=1, max_length=6)
    ] = (1, 2)
    blocks: Annotated[int, Field(gt=0, le=64)] = 1
    attention: Annotated[int, Field(ge=0)] = 0  # coarsest levels of a small_unet that attend
    attention_resolutions: tuple[Positive, ...] = (16,)
    augment: Annotated[int, Field(ge=0, le=1000)] = 9
    conditional: bool = False
    precond: Literal["velocity", "edm"] = "edm"
    sigma_data: PositiveFloat = 0.5


class Architecture(Network):
    """The document of a network in a model file: what :class:`Network` says, and for what data."""

    conditional: bool = False  # told by ``classes``
    shape: tuple[Side, Side, Side]
    classes: Annotated[int, Field(ge=0, le=1_000_000)]


class Times(Section):
    """The law of the training time; with ``antithetic`` about half of a batch has its mirror image
    (t and 1 - t) in it, as in the RF++ runs, for laws that are symmetric."""

    law: Literal["u_shape", "uniform", "logit_normal", "fixed"] = "u_shape"
    a: Annotated[float, Field(gt=0, le=100)] = 4.0
    mean: float = 0.0
    std: PositiveFloat = 1.0
    t: Annotated[float, Field(ge=0, le=1)] = 1.0
    antithetic: bool = False


class Loss(Section):
    """The distance between a velocity and its target; ``c`` is pseudo-Huber's, per value.

    ``lpips_huber`` is ``(1 - t) huber + LPIPS`` and ``lpips_huber_over_t`` divides LPIPS by t.
    For data far from photographs ``perceptual: classifier`` takes the place of LPIPS by a net
    trained on the labels.  ``pooling`` and ``resize`` (0: native) are those of LPIPS.  ``l2`` is
    the mean square, ``l2_root`` its root (what the RF++ code calls l2).  ``chunk`` images at a
    time pass the perceptual net (0: all at once), which takes less memory and as many FLOPs.
    """

    name: Literal["l2", "l2_root", "pseudo_huber", "lpips_huber", "lpips_huber_over_t"] = (
        "pseudo_huber"
    )
    c: PositiveFloat = 0.00054
    perceptual: Literal["lpips", "classifier"] = "lpips"
    pooling: Literal["average", "max"] = "average"
    resize: Annotated[int, Field(ge=0, le=1024)] = 224
    vgg_path: PathText | None = None
    chunk: Annotated[int, Field(ge=0)] = 0

    @property
    def is_perceptual(self) -> bool:
        return self.name.startswith("lpips")


class Training(Section):
    """What pretrain and reflow share.

    ``precision: tf32`` rounds the factors of products on a CUDA device; ``warmup_from_zero`` and
    ``nonfinite: skip`` (an update whose gradient is not finite is left out; 20 in a row end the
    run) are as in the RF++ runs.
    """

    steps: Positive = 2500
    batch: Positive = 128
    lr: PositiveFloat = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    warmup_from_zero: bool = False
    decay: Literal["constant", "cosine"] = "cosine"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    clip: Annotated[float, Field(ge=0)] = 0.0
    accumulate: Positive = 1  # parts of a batch whose gradients are added up
    ema: Fraction = 0.998
    ema_ramp: bool = True
    dropout: Fraction = 0.0
    label_dropout: Fraction = 0.0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    threads: Positive = 2
    log_every: Positive = 50
    nonfinite: Literal["stop", "skip"] = "stop"
    times: Times = Times()
    loss: Loss = Loss()

    @model_validator(mode="after")
    def whole_reports(self) -> Training:
        if self.steps % self.log_every:
            raise ValueError(f"steps ({self.steps}) must be a multiple of log_every "
                             f"({self.log_every})")  # fmt: skip
        return self

    @model_validator(mode="after")
    def whole_parts(self) -> Training:
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must be a multiple of accumulate "
                             f"({self.accumulate})")  # fmt: skip
        return self

    @model_validator(mode="after")
    def mirrored_times_follow_the_law(self) -> Training:
        if self.times.antithetic and self.times.law == "logit_normal" and self.times.mean:
            raise ValueError("times.antithetic needs a law that is symmetric about 1/2, so "
                             "times.mean must be 0")  # fmt: skip
        return self

    @model_validator(mode="after")
    def divided_by_a_time_above_0(self) -> Training:
        if self.loss.name.endswith("over_t") and self.times.law == "fixed" and not self.times.t:
            raise ValueError("loss.name lpips_huber_over_t divides by t, so times.t must be above "
                             "0")  # fmt: skip
        return self


class Pretrain(Training):
    """The first flow: trained here, or imported from a checkpoint whose sha256 is stated."""

    source: Literal["train", "import"] = "train"
    checkpoint: PathText | None = None
    checkpoint_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def imports_name_their_file(self) -> Pretrain:
        if self.source == "import" and not (self.checkpoint and self.checkpoint_sha256):
            raise ValueError("source: import needs checkpoint (a path) and checkpoint_sha256 "
                             "(`sha256sum` prints it)")  # fmt: skip
        return self


class Reflow(Training):
    """The flows trained on pairs."""

    init: Literal["teacher", "scratch"] = "teacher"


class Invert(Section):
    """Real images sent to noise by a teacher: pairs whose noise is stored (RF++, config G)."""

    shard: Positive = 1000
    micro_batch: Positive = 250
    solver: SolverName = "heun"
    nfe: Positive = 128
    grid: Literal["uniform", "karras"] = "uniform"

    @model_validator(mode="after")
    def whole_micro_batches(self) -> Invert:
        if self.shard % self.micro_batch:
            raise ValueError(f"shard ({self.shard}) must be a multiple of micro_batch "
                             f"({self.micro_batch})")  # fmt: skip
        if self.solver.startswith("anchored"):
            raise ValueError("the anchored update has no inverse; take heun or midpoint")
        return self


class Finetune(Training):
    """Training on inverted real images; ``mix`` is the share of a round's own pairs."""

    mix: Annotated[float, Field(ge=0, le=1)] = 0.0


class Finetuned(Section):
    """A flow to be fine-tuned: which teacher inverts, where it starts, whose pairs are mixed."""

    teacher: FlowName
    flow: FlowName
    pairs: RoundName


class Generate(Section):
    """The pairs: n of them in shards, made in index-aligned micro-batches; or those of a store
    that ``rfpp pairs import`` made, at ``path``, with the ``digest`` that it printed."""

    source: Literal["teacher", "import"] = "teacher"
    path: PathText | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    n: Positive = 20000
    shard: Positive = 2000
    micro_batch: Positive = 250
    solver: SolverName = "heun"
    nfe: Positive = 35
    grid: Literal["uniform", "karras"] = "uniform"
    guidance: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def whole_shards(self) -> Generate:
        if self.shard % self.micro_batch:
            raise ValueError(f"shard ({self.shard}) must be a multiple of micro_batch "
                             f"({self.micro_batch})")  # fmt: skip
        if self.n % self.shard:
            raise ValueError(f"n ({self.n}) must be a multiple of shard ({self.shard})")
        if self.source == "import" and not (self.path and self.digest):
            raise ValueError("source: import needs path, a store made by `rfpp pairs import`, and "
                             "digest, which that printed")  # fmt: skip
        return self


class Round(Section):
    """A reflow round: which flow makes its pairs."""

    teacher: FlowName


class Features(Section):
    """The feature nets of the metrics, the first the headline; steps, batch and lr are those of
    the classifier's training.  ``inception_sha256`` vouches for a file other than clean-fid's."""

    nets: Annotated[
        tuple[Literal["classifier", "inception", "inception_clean", "pixels"], ...],
        Field(min_length=1),
    ] = ("classifier",)
    steps: Positive = 800
    batch: Positive = 128
    lr: PositiveFloat = 4e-3
    inception_path: PathText | None = None
    inception_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def each_once(self) -> Features:
        if len(set(self.nets)) < len(self.nets):
            raise ValueError(f"nets names one twice: {', '.join(self.nets)}")
        return self


class Evaluate(Section):
    """What is measured: ``nfe`` with ``solver`` over ``seeds`` sampling seeds for every flow, and
    ``teacher_nfe`` with Heun, over ``teacher_seeds`` for the first flow and one for the others;
    ``adaptive`` adds a row of RK45, whose evaluations are counted."""

    n: Positive = 5000
    seeds: Positive = 3
    nfe: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)
    solver: SolverName = "euler"
    grids: dict[str, tuple[float, ...]] = {}
    teacher_nfe: Positive = 35
    teacher_seeds: Positive = 3
    adaptive: bool = False
    neighbours: Positive = 3
    straightness_n: Positive = 200

    @model_validator(mode="after")
    def enough_samples(self) -> Evaluate:
        if self.n <= self.neighbours + 1:
            raise ValueError(f"n ({self.n}) must exceed neighbours + 1 ({self.neighbours + 1})")
        return self

    @model_validator(mode="after")
    def grids_spend_their_nfe(self) -> Evaluate:
        stages = 1 if self.solver in ("euler", "anchored") else 2
        for name, times in self.grids.items():
            steps = -(-int(name) // stages) if re.fullmatch("[0-9]{1,9}", name) else 0
            inner = times[:-1] if times and times[-1] == 0 else times
            falling = inner[:1] == (1.0,) and all(a > b for a, b in pairwise((*inner, 0.0)))
            if not falling or len(inner) != steps or int(name) not in self.nfe:
                raise ValueError(f"grids.{name} must be {steps} times falling from 1, for one "
                                 f"of nfe {list(self.nfe)}; it is {list(times)}")  # fmt: skip
        return self


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dataset: Dataset = Dataset()
    network: Network = Network()
    features: Features = Features()
    pretrain: Pretrain = Pretrain()
    generate: Generate = Generate()
    reflow: Reflow = Reflow()
    rounds: dict[RoundName, Round] = {"2": Round(teacher="flow1")}
    invert: Invert = Invert()
    finetune: Finetune = Finetune()
    finetunes: dict[RoundName, Finetuned] = {}
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def sections_agree(self) -> Params:
        if self.rounds and self.generate.n < self.reflow.batch:
            raise ValueError(f"reflow.batch ({self.reflow.batch}) is larger than the set of pairs "
                             f"(generate.n = {self.generate.n})")  # fmt: skip
        trained = self.network.conditional and self.pretrain.label_dropout > 0
        if any(item.teacher != "flow1" for item in self.rounds.values()):
            trained = trained and self.reflow.label_dropout > 0
        if self.generate.guidance != 1 and not trained:
            raise ValueError("generate.guidance other than 1 needs network.conditional: true and "
                             "label_dropout above 0 in the training of every teacher")  # fmt: skip
        return self

    @model_validator(mode="after")
    def an_imported_teacher_is_edm_s(self) -> Params:
        imported = self.pretrain.source == "import"
        network = self.network
        if imported and (network.precond, network.sigma_data) != ("edm", 0.5):
            raise ValueError("pretrain.source: import needs network.precond: edm and "
                             "network.sigma_data: 0.5")  # fmt: skip
        if imported and self.generate.guidance != 1:
            raise ValueError("generate.guidance other than 1 needs a teacher trained here with "
                             "label_dropout; an imported one is not")  # fmt: skip
        if self.evaluate.solver == "edm-heun":
            raise ValueError("evaluate.solver edm-heun cannot start at t = 1; the many-step row "
                             "of an imported teacher is by it anyway")  # fmt: skip
        for name, section, teacher in self._solved():
            late = imported and teacher == "flow1"
            if section.solver == "edm-heun" and not late:
                raise ValueError(f"{name}.solver edm-heun integrates over sigma, which has no end "
                                 f"at t = 1: it is for an imported flow1, not for {teacher} "
                                 f"(pretrain.source: {self.pretrain.source})")  # fmt: skip
            if late and section.grid == "uniform" and -(-section.nfe // 2) > 80:
                raise ValueError(f"{name}.grid: uniform with more than 80 steps begins before an "
                                 f"imported EDM's first time, 80/81; take karras")  # fmt: skip
        made = self.generate
        if made.solver == "edm-heun" and made.nfe % 2 == 0:
            raise ValueError(f"generate.nfe is {made.nfe}; edm-heun drops the last correction, so "
                             f"N steps spend 2N - 1: an odd number")  # fmt: skip
        return self

    def _solved(self) -> list[tuple[str, Generate | Invert, str]]:
        """Which section integrates which teacher's ODE."""
        made: list[tuple[str, Generate | Invert, str]] = []
        if self.generate.source == "teacher":
            made += [("generate", self.generate, item.teacher) for item in self.rounds.values()]
        return made + [("invert", self.invert, item.teacher) for item in self.finetunes.values()]

    @model_validator(mode="after")
    def teachers_come_before(self) -> Params:
        flows = {"flow1"} | {f"flow{k}" for k in self.rounds}
        for k, item in self.rounds.items():
            if item.teacher not in flows or int(item.teacher[4:]) >= int(k):
                raise ValueError(f"rounds.{k}.teacher is {item.teacher}; it must be an earlier "
                                 f"flow of {', '.join(sorted(flows))}")  # fmt: skip
        for k, made in self.finetunes.items():
            known = {f"flow{j}" for j in ("1", *self.rounds) if int(j) < int(k)}
            if {made.teacher, made.flow} - known or made.pairs not in self.rounds:
                raise ValueError(f"finetunes.{k} names {made.teacher}, {made.flow} and the pairs "
                                 f"of round {made.pairs}; flows must be earlier ones of "
                                 f"{', '.join(sorted(flows))}, rounds of "
                                 f"{', '.join(self.rounds) or 'none'}")  # fmt: skip
            if k in self.rounds:
                raise ValueError(
                    f"flow{k} is both in rounds and in finetunes; take another number"
                )
        return self

    @property
    def flows(self) -> list[str]:
        """Every flow of the run, in order."""
        return [f"flow{k}" for k in sorted(("1", *self.rounds, *self.finetunes), key=int)]


def load(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks a params file.

    Raises:
        UserError: one line that names each wrong param, its value and what is allowed.
    """
    try:
        raw = yaml_file.read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `rfpp preset digits` puts one in place") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold sections such as 'reflow:'; `rfpp preset digits` does")
    return parse(raw, str(path))


def parse(raw: dict[str, Any], where: str = "params") -> Params:
    """Checks a mapping against the schema; raises :class:`UserError` as :func:`load` does."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explained(error)}") from None


def explained(error: ValidationError) -> str:
    """What is wrong with each param, and what is allowed, in one line."""
    return " ".join("; ".join(map(_explain, error.errors())).split())


def _explain(error: Any) -> str:
    parts = [part for part in error["loc"] if part != "[key]"]
    name, given = quoted(".".join(map(str, parts)), 400), quoted(_SHORT.repr(error["input"]), 400)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown param '{name}' (allowed: {', '.join(_siblings(error['loc']))})"
        case "missing":
            return f"{name} is missing"
        case "string_type" if isinstance(error["input"], int):
            return f"{name} is {given}: it must be a string; write it in quotes"
    message = quoted(error["msg"].removeprefix("Value error, "), 400)
    if error["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name} is {given}: {message[0].lower()}{message[1:]}"


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    section: Any = Params
    for part in loc[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        if field is not None:
            section = field.annotation
        elif get_origin(section) is dict:  # rounds, finetunes: the key is the user's
            section = get_args(section)[1]
    return sorted(section.model_fields)
