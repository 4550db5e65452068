"""What identities are made of: all that determines a result, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.work import identity, training_job
from rfpp_core.config import build
from rfpp_core.config.evaluate import Features
from rfpp_core.config.network import Architecture, Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.config.section import Section
from rfpp_core.pairs.spec import PairSpec
from tests.helpers import ROOT

EDM_SHARED = {"edm_layers", "edm_unet", "edm_blocks"}
FROZEN = Path(__file__).parent / "frozen_defaults.json"
LABELS = ("small_unet u_shape pseudo_huber none constant seeded",
          "small_unet uniform l2 none constant independent",
          "ncsnpp logit_normal l2_root none constant independent",
          "adm fixed pseudo_huber classifier over_t stored",
          "small_unet fixed l2 none constant stored+seeded")  # fmt: skip


def identities(source: Path, monkeypatch) -> dict[str, dict[str, str]]:
    """Code digests of five trainings, by what they use."""
    monkeypatch.setattr(identity, "SOURCE", source)
    identity._module.cache_clear()
    found = {}
    for label in LABELS:
        arch, distribution, loss, perceptual, weighting, couplings = label.split()
        recipe = Recipe.model_validate({
            "times": {"distribution": distribution},
            "loss": {"name": loss, "perceptual": perceptual, "weighting": weighting},
        })  # fmt: skip
        network = build.architecture(Network(arch=arch, channels=64), (3, 32, 32), 0)
        found[label] = training_job.code_of(
            recipe, build.architecture_of(network), couplings.split("+")
        )
    return found


@pytest.fixture
def source(tmp_path) -> Path:
    for name in identity.PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def edit(source: Path, module: str, old: str, new: str) -> None:
    path = source / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# what is edited -> which of the trainings above it determines
CHANGES = {
    "a time distribution": (
        "rfpp_core.training.times", "return 0.5 + torch.asinh(", "return 0.5 + torch.sinh(",
        {"u_shape"},
    ),
    "the builder of a time distribution": (
        "rfpp_core.config.objective", '"uniform": lambda p: times.uniform',
        '"uniform": lambda p: None',
        {"uniform"},
    ),
    "the builder of every time distribution": (
        "rfpp_core.config.objective", "times.inside(inverse(u))", "inverse(u)", set(LABELS),
    ),
    "a coupling": (
        "rfpp_core.training.couplings.paired", "z = normal(seed, batch", "z = -normal(seed, batch",
        {"seeded"},
    ),
    "the builder of a coupling": (
        "rfpp_core.config.objective", '"stored": lambda seed', '"stored": lambda _seed',
        {"stored"},
    ),
    "the coupling of real images": (
        "rfpp_core.training.couplings.independent", 'draws.normal("coupling"',
        '-draws.normal("coupling"', {"independent"},
    ),
    "how pairs are read for a training": (
        "pipeline.work.training_data", "found = store.read_all(buffers)",
        "found = store.read_all( buffers, 1)", {"seeded", "stored"},
    ),
    "a loss": (
        "rfpp_core.training.losses", "return (v - target).square()", "return (v - target).abs()",
        {"l2", "l2_root"},
    ),
    "the weight of a perceptual term": (
        "rfpp_core.training.losses", "return 1 / t", "return 2 / t", {"over_t"},
    ),
    "a layer of EDM's networks": (
        "rfpp_core.model.nets.edm_layers", "def forward(", "SCALE = 1\n\n    def forward(",
        {"ncsnpp", "adm"},
    ),
    "a network": (
        "rfpp_core.model.nets.small_unet", "def forward(", "SCALE = 1\n\n    def forward(",
        {"small_unet"},
    ),
    "a perceptual distance": (
        "rfpp_core.training.perceptual", "EPS = 1e-20", "EPS = 1e-10", {"classifier"},
    ),
    "the training loop": (
        "rfpp_core.training.trainer", "state.step += 1", "state.step = 1 + state.step",
        set(LABELS),
    ),
    "an option of the training loop": (
        "rfpp_core.training.train_config", "    nonfinite: str",
        "    new: int = 1\n    nonfinite: str", set(),
    ),
    "the exactness settings": (
        "rfpp_core.runtime", "cudnn.allow_tf32 = tf32", "cudnn.allow_tf32 = True", set(LABELS),
    ),
    "the order of images": (
        "rfpp_core.rng", "def permutation(", "def permutation(x=1, *, ", set(LABELS),
    ),
    "the definition of the noise": (
        "rfpp_core.rng.box_muller", "series = series * y2", "series = series * y", set(LABELS),
    ),
    "how the noise is computed fast": (
        "rfpp_core.rng.cpu", "torch.empty(", "torch.zeros(", set(),
    ),
    "an unused function": (
        "rfpp_core.training.couplings.paired", "def stored(",
        "def unused():\n    pass\n\n\ndef stored(", set(),
    ),
    "a comment, a docstring, an annotation": (
        "rfpp_core.training.times", "def uniform(u: Tensor) -> Tensor:\n    \"\"\"The",
        "def uniform(u: int) -> int:  # why\n    \"\"\"One", set(),
    ),
    "a new entry of a table": (
        "rfpp_core.config.objective", '    "uniform": lambda p: times.uniform,',
        '    "uniform": lambda p: times.uniform,\n    "new": lambda p: times.new,', set(),
    ),
    "a param with a default": (
        "rfpp_core.config.recipe", "    a: Annotated[float",
        "    b: float = 1.0\n    a: Annotated[float", set(),
    ),
    "a param of a network with a default": (
        "rfpp_core.config.network", "    blocks: Annotated",
        "    new: int = 1\n    blocks: Annotated", set(),
    ),
    "a message of a training": (
        "pipeline.work.training_run", "images/s)", "images a second)", set(),
    ),
    "how pairs are stored": (
        "rfpp_core.pairs.store", "def forget(", "def check(self): pass\n\n    def forget(", set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_code_changes_the_trainings_that_use_it_and_no_others(
    source, monkeypatch, what
):
    module, old, new, users = CHANGES[what]
    before = identities(source, monkeypatch)
    edit(source, module, old, new)
    after = identities(source, monkeypatch)
    changed = {label for label in LABELS if after[label] != before[label]}
    words = {label: set(label.replace("+", " ").split()) for label in LABELS}
    assert changed == {label for label in LABELS if label in users or users & words[label]}


def test_a_new_module_changes_nothing(source, monkeypatch):
    before = identities(source, monkeypatch)
    (source / "rfpp_core" / "new.py").write_text("def unused():\n    return 1\n")
    assert identities(source, monkeypatch) == before


def test_the_code_of_a_training_is_all_that_computes_and_nothing_that_speaks():
    """By name: a function that the trainer or a builder calls is there, terminal and files not."""
    recipe = Recipe()
    arch = build.architecture_of(build.architecture(Network(precond="velocity"), (1, 8, 8), 0))
    found = training_job.code_of(recipe, arch, ["seeded"])
    roots = [identity.Name("pipeline.work.training_run", "prepare"),
             identity.Name("pipeline.work.training_data", "read_pairs")]  # fmt: skip
    roots.append(identity.Name("rfpp_core.training.trainer", "train"))
    chosen = {"u_shape", "pseudo_huber", "seeded", "small_unet", "velocity", "cosine", "fp32",
              "flow_matching"}  # fmt: skip
    assert found == identity.digests(roots, chosen)
    names = {f"{at.module}.{at.name}" for at in identity.closure(roots, chosen)}
    assert names >= {
        f"rfpp_core.{name}" for name in (
            "config.objective.time_distribution", "config.build.field", "config.objective.loss",
            "config.objective.training_times", "training.times.u_shape", "training.ema.update",
            "training.couplings.paired.seeded", "training.losses.pseudo_huber",
            "rng.philox.philox", "rng.box_muller.normal",
            "model.nets.small_unet.SmallUNet", "model.nets.layers.Attention",
            "model.precond.PlainVelocity", "images.loader.batches", "runtime.exact",
            "training.trainer.TrainState", "images.pixels.to_float",
        )
    }  # fmt: skip
    assert not {name for name in names if name.startswith((
        "rfpp_core.model.nets.edm_layers", "rfpp_core.training.perceptual", "rfpp_core.pairs",
        "rfpp_core.storage.files", "pipeline.work.workdir", "pipeline.console",
        "rfpp_core.config.params", "rfpp_core.config.recipe", "rfpp_core.sampling",
    ))}  # fmt: skip
    assert not names & {"rfpp_core.training.times.uniform", "rfpp_core.training.losses.l2",
                        "rfpp_core.training.couplings.paired.stored",
                        "rfpp_core.training.couplings.independent.independent",
                        "pipeline.work.training_run.run"}  # fmt: skip


@pytest.mark.parametrize("name", ["small_unet", "ncsnpp", "ddpmpp", "adm"])
def test_every_network_is_built_by_the_table(name):
    arch = build.architecture_of(
        build.architecture(Network(arch=name, channels=64), (3, 32, 32), 0)
    )
    modules = training_job.code_of(Recipe(), arch, ["independent"])
    of_net = {m.removeprefix("rfpp_core.model.nets.") for m in modules if ".nets." in m}
    own = {"small_unet": "small_unet", "adm": "dhariwal_unet"}.get(name, "song_unet")
    shared = {"layers", "group_norm"} if name == "small_unet" else of_net & EDM_SHARED
    assert shared
    assert of_net == shared | {own}


def test_every_sampled_word_of_a_recipe_that_names_code_is_followed():
    """Each table of alternatives that a recipe can name is annotated Choices."""
    tables = {
        "config/build": ("NETWORKS", "PRECONDITIONINGS"),
        "config/objective": ("TIMES", "DISTANCES", "WEIGHTINGS", "COUPLINGS", "MATCHINGS",
                             "TRANSFERS", "PAIRED", "SCHEDULES", "OBJECTIVES"),
        "model/prediction": ("ON_RF", "ON_VP", "FIELDS"),
    }  # fmt: skip
    for module, names in tables.items():
        text = (ROOT / "rfpp_core" / f"{module}.py").read_text()
        assert all(f"\n{table}: Choices[" in text for table in names)


def defaults() -> dict[str, object]:
    """Every default that identities leave out, by dotted name."""
    found: dict[str, object] = {}

    def walk(section: type[BaseModel], path: str) -> None:
        for name, field in section.model_fields.items():
            kind, at = field.annotation, f"{path}.{name}"
            if isinstance(kind, type) and issubclass(kind, Section):
                walk(kind, at)
            elif field.default is not PydanticUndefined:
                found[at] = json.loads(json.dumps(field.default, default=str))

    for section in (Recipe, Architecture, Features):
        walk(section, section.__name__)
    for field in fields(PairSpec):
        if field.default is not MISSING:
            found[f"PairSpec.{field.name}"] = field.default
    return found


def test_defaults_never_change():
    """Identities leave them out, so another default would pass old work as new.

    A new option: add its line to tests/frozen_defaults.json.
    """
    assert defaults() == json.loads(FROZEN.read_text())


def test_a_recipe_is_identified_by_what_differs_from_its_defaults():
    recipe = Recipe.model_validate({"steps": 100, "log_every": 10, "times": {"a": 4.0}})
    assert recipe.identity == {"steps": 100}
    recipe = Recipe.model_validate({"times": {"distribution": "uniform"}, "loss": {"c": 1.0}})
    assert recipe.identity == {"times": {"distribution": "uniform"}, "loss": {"c": 1.0}}
