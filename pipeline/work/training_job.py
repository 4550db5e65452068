"""A training as a job: a row of ``flows`` with all that determines its weights.

Names of rows are in no identity: a renamed row, or two that say the same, compute nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import artifacts
from pipeline.work import identity, ledger, perceptual_net, training_data
from pipeline.work.training_data import DataSet
from rfpp_core.config import build
from rfpp_core.config.network import Architecture
from rfpp_core.config.params import Params
from rfpp_core.config.recipe import Recipe
from rfpp_core.config.section import described
from rfpp_core.errors import UserError
from rfpp_core.rng import subkey
from rfpp_core.storage import files

KIND = "train"  # of staged work


@dataclass(frozen=True)
class Job:
    """A training, with all that determines its weights."""

    name: str  # of the flow, for messages
    params: Params
    recipe: Recipe
    sets: tuple[DataSet, ...]  # its data; and the second set of a mix
    start: Path  # model file of its initial weights
    start_digest: str
    architecture: dict[str, Any]
    spent: dict[str, int]  # network forwards of its ancestors; see ``ledger``

    def identity(self) -> dict[str, Any]:
        """What determines the weights; ``steps`` too if the rate depends on it."""
        recipe, architecture = self.recipe, build.architecture_of(self.architecture)
        document: dict[str, Any] = {
            "training": recipe.identity,
            "architecture": described(architecture),
            "data": [part.identity for part in self.sets],
            "start": self.start_digest,
            "seed": self.params.seed,
            "code": code_of(recipe, architecture, [part.coupling for part in self.sets]),
        }
        if recipe.decay == "constant":
            document["training"].pop("steps", None)
        if recipe.loss.perceptual != "none":
            document["perceptual"] = perceptual_net.identity(recipe.loss, self.params.dataset)
        return document

    def request(self) -> dict[str, Any]:
        """The identity and what it leaves out: all that DVC will record with the result."""
        return {**self.identity(), "recipe": self.recipe.model_dump(mode="json")}

    @property
    def seed(self) -> int:
        """Of order, noise, times and dropout."""
        return subkey(self.params.seed, self.sets[0].purpose)


def job_of(flow: str, params: Params) -> Job:
    """The training of a row of ``flows``, from params and the files it reads.

    Raises:
        UserError: if a file is missing, or is not what the row says.
    """
    row, recipe = params.flows[flow], params.recipe_of(flow)
    start = artifacts.model(row.start)
    digest, about = training_data.read_model(start)
    sets = tuple(
        training_data.data_of(
            name, params, recipe, start, about["architecture"], params.domains_of(flow)
        )
        for name in params.sets_of(flow)
    )
    return Job(
        name=flow,
        params=params,
        recipe=recipe,
        sets=sets,
        start=start,
        start_digest=digest,
        architecture=build.trained_architecture(recipe, about["architecture"]),
        spent=ledger.union(ledger.of(about, digest), *(part.spent for part in sets)),
    )


def code_of(
    recipe: Recipe, architecture: Architecture, couplings: Sequence[str]
) -> dict[str, str]:
    """Digests of the code that determines the weights of a training, by module.

    Args:
        recipe: how it is trained.
        architecture: of which network.
        couplings: how noise belongs to the images of each set.
    """
    loss = recipe.loss
    chosen = {
        recipe.times.distribution, recipe.decay, recipe.precision, loss.name, recipe.objective,
        *architecture.names, *couplings,
    }  # fmt: skip
    if recipe.objective == "flow_map":
        chosen |= {recipe.flow_map.end, recipe.flow_map.derivative}
    if loss.perceptual != "none":
        chosen |= {loss.perceptual, loss.weighting}
    if recipe.objective == "diffusion":
        chosen.add(loss.space)
    kinds = {training_data.reader_of(name) for name in couplings}
    roots = [
        identity.Name("pipeline.work.training_run", "prepare"),
        identity.Name("rfpp_core.training.trainer", "train"),
        *(
            identity.Name("pipeline.work.training_data", training_data.READERS[kind].__name__)
            for kind in kinds
        ),
    ]
    if len(couplings) > 1:
        roots.append(identity.Name("rfpp_core.training.couplings.mixed", "mixed"))
    if recipe.shuffled and "pairs" in kinds:
        roots.append(identity.Name("rfpp_core.training.couplings.shuffled", "shuffled"))
    if recipe.flip:
        roots.append(identity.Name("rfpp_core.training.couplings.flipped", "flipped"))
    if recipe.anneal.schedule != "none":
        roots.append(identity.Name("rfpp_core.config.objective", "annealing"))
        chosen.add(recipe.anneal.schedule)
    return identity.digests(roots, chosen)


def code_now(document: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`code_of` gives today for an identity that is staged.

    Raises:
        UserError: if it is of an earlier version.
    """
    try:
        couplings = [part["coupling"] for part in document["data"]]
        # log_every is no part of an identity; 1 fits any number of steps
        recipe = Recipe.model_validate({**document["training"], "log_every": 1})
        architecture = build.architecture_of(document["architecture"])
    except (KeyError, TypeError, ValidationError):
        raise UserError("it was made by an earlier version of this project") from None
    return code_of(recipe, architecture, couplings)


def metadata_of(job: Job, curve: str, adopted: Sequence[Any]) -> dict[str, Any]:
    """Of the finished model file: no name, path, host or time.

    Args:
        job: the training.
        curve: digest of its loss curve.
        adopted: what `rfpp work adopt` recorded about it.
    """
    recipe = job.recipe
    own = recipe.forwards * recipe.steps * recipe.batch
    made = {name: forwards for part in job.sets for name, forwards in part.spent.items()
            if name == ledger.key("pairs", part.digest)}  # fmt: skip
    spent = {**job.spent, ledger.key(KIND, files.digest(job.identity())): own}
    provenance: dict[str, Any] = {
        "stage": KIND,
        "start": job.start_digest,
        "data": [part.identity for part in job.sets],
        "seed": job.params.seed,
        "curve": curve,
        "images_seen": recipe.steps * recipe.batch,
        "budget": own + sum(made.values()),
        "budget_with_ancestors": sum(spent.values()),
        "ledger": spent,
    }
    if recipe.loss.perceptual != "none":
        provenance["perceptual"] = job.identity()["perceptual"]
    if adopted := [note for part in job.sets for note in part.adopted] + list(adopted):
        provenance["adopted"] = adopted
    domains = job.sets[0].domains
    return {
        "architecture": job.architecture,
        "params": build.provenance_params(job.params, recipe),
        "provenance": provenance,
        **build.first_time(job.architecture),
        **({} if domains is None else {"domains": dict(domains)}),
    }
