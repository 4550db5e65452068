"""``params.yaml``: every option, its type and its range; ``rules`` checks across sections.

An option that the chosen distribution or loss does not use is legal and has no effect.  What
cannot change a result (devices, workers, log level, retries) is no param: it comes from the
environment (``pipeline.settings``).
"""

from __future__ import annotations

from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

from rfpp_core.config import rules, yaml_file
from rfpp_core.config.dataset import Dataset
from rfpp_core.config.evaluate import Evaluate, Features
from rfpp_core.config.flow import Domains, FlowRow
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.pairs import PairSet
from rfpp_core.config.recipe import Recipe
from rfpp_core.config.section import Name, Section, Seed
from rfpp_core.errors import UserError, quoted

_SHORT = Repr()  # of values of a file, which may contain themselves
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class Params(Section):
    """``params.yaml``.  Rows of networks, recipes, pairs and flows are named by the user."""

    seed: Seed = Field(default=0, description="of trainings and noise")
    dataset: Dataset = Dataset()
    features: Features = Features()
    networks: Annotated[dict[Name, NetworkRow], Field(min_length=1)]
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    pairs: dict[Name, PairSet] = Field(default={})
    flows: Annotated[dict[Name, FlowRow], Field(min_length=1)]
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def rows_agree(self) -> Self:
        rules.check(self)
        return self

    def recipe_of(self, flow: str) -> Recipe:
        """The recipe of a flow."""
        return self.recipes[self.flows[flow].recipe]

    def starts_of(self, flow: str) -> list[str]:
        """The chain of starts of a flow: the flow it starts from, that flow's start, ..., and a
        network."""
        starts = [self.flows[flow].start]
        while starts[-1] in self.flows:
            starts.append(self.flows[starts[-1]].start)
        return starts

    def network_of(self, flow: str) -> NetworkRow:
        """The network at the end of a flow's chain of starts."""
        return self.networks[self.starts_of(flow)[-1]]

    def is_imported(self, flow: str) -> bool:
        """Whether a flow is a checkpoint as it is, without any training."""
        *flows, network = self.starts_of(flow)
        trained = any(self.recipe_of(name).steps for name in (flow, *flows))
        return not trained and bool(self.networks[network].checkpoint)

    def is_flow_map(self, flow: str) -> bool:
        """Whether a flow takes an end time: it, or what it starts from, is trained to."""
        chain = [name for name in (flow, *self.starts_of(flow)) if name in self.flows]
        return any(self.recipe_of(name).objective == "flow_map" and self.recipe_of(name).steps
                   for name in chain)  # fmt: skip

    def teacher_of(self, flow: str) -> str | None:
        """The flow that made the pairs of a flow; None for one trained on images."""
        data = self.flows[flow].data
        return self.pairs[data].teacher if data in self.pairs else None

    def domains_of(self, flow: str) -> Domains | None:
        """The two sets of images that a flow translates between; None for one from noise."""
        row = self.flows[flow]
        if not self.recipe_of(flow).steps:
            return self.domains_of(row.start) if row.start in self.flows else None
        return self.domains_of_set(row.data, flow)

    def domains_of_set(self, data: str, flow: str) -> Domains | None:
        """The domains of a set that a flow learns from: its own of images, the teacher's of
        pairs."""
        if data in self.pairs:
            return self.domains_of(self.pairs[data].teacher)
        own = self.flows[flow].domains
        return own if own.source else None

    def uses_mix(self, flow: str) -> bool:
        """Whether a share of a flow's batches comes from its second set."""
        return self.recipe_of(flow).mix > 0 and self.recipe_of(flow).steps > 0

    def sets_of(self, flow: str) -> list[str]:
        """What a flow learns from: its data, and the second set of a mix."""
        row = self.flows[flow]
        return [row.data, row.mix] if self.uses_mix(flow) else [row.data]


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
        raise UserError(f"{path} must hold sections such as 'flows:'; `rfpp preset digits` does")
    return parse(raw, str(path))


def parse(raw: dict[str, Any], where: str = "params") -> Params:
    """Checks a mapping against the schema; raises :class:`UserError` as :func:`load` does."""
    if older := rules.earlier_sections(raw):
        raise UserError(f"{where} is of an earlier version ({', '.join(older)}): now networks, "
                        f"recipes, pairs and flows are rows that you name; `rfpp preset` puts a "
                        f"new file in place and says what became of yours")  # fmt: skip
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explained(error)}") from None


def explained(error: ValidationError) -> str:
    """What is wrong with each param, and what is allowed, in one line."""
    return " ".join("; ".join(map(_explain, error.errors())).split())


def _explain(error: Any) -> str:
    section, *parts = error["loc"] or ("",)
    given = quoted(_SHORT.repr(error["input"]), 400)
    if len(parts) == 2 and parts[1] == "[key]":  # grids of evaluate have three
        return (f"{section} has a row named {given}; a name is made of a-z, 0-9 and _, a letter "
                f"first")  # fmt: skip
    parts = [section, *(part for part in parts if part != "[key]")]
    name = quoted(".".join(map(str, parts)), 400)
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
        elif get_origin(section) is dict:  # networks, recipes, ...: the key is the user's
            section = get_args(section)[1]
    return sorted(section.model_fields)
