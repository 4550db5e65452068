"""What identities are made of: all that determines a result, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.work import identity, training_job
from rfpp_core.config import build, params
from rfpp_core.config.params import Architecture, Network, Section
from rfpp_core.pairs.spec import PairSpec
from tests.helpers import ROOT

FROZEN = Path(__file__).parent / "frozen_defaults.json"
LABELS = ("small_unet u_shape pseudo_huber seeded", "small_unet uniform l2 independent",
          "ncsnpp logit_normal l2 independent", "adm fixed lpips_huber stored")  # fmt: skip


def identities(source: Path, monkeypatch) -> dict[str, dict[str, str]]:
    """Code digests of four trainings, by what they use."""
    monkeypatch.setattr(identity, "SOURCE", source)
    identity._module.cache_clear()
    found = {}
    for label in LABELS:
        arch, law, loss, coupling = label.split()
        kind = "pretrain" if coupling == "independent" else "reflow"
        section = training_job.SECTIONS[kind].model_validate(
            {"times": {"law": law}, "loss": {"name": loss, "perceptual": "classifier"}}
        )
        network = build.architecture(Network(arch=arch, channels=64), (3, 32, 32), 0)
        found[label] = training_job.code_of(
            kind, section, build.architecture_of(network), {"coupling": coupling}
        )
    return found


@pytest.fixture
def source(tmp_path) -> Path:
    for name in identity.PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def edit(source: Path, module: str, old: str, new: str) -> None:
    file = source / f"{module.replace('.', '/')}.py"
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
        "rfpp_core.config.build", '"uniform": lambda p: timesteps.uniform', '"uniform": lambda p: None',
        {"uniform"},
    ),
    "the builder of every time distribution": (
        "rfpp_core.config.build", "timesteps.inside(law(u))", "law(u)", set(LABELS),
    ),
    "a coupling": (
        "rfpp_core.training.couplings", "z = normal(seed, batch", "z = -normal(seed, batch", {"seeded"},
    ),
    "the builder of a coupling": (
        "pipeline.stages.reflow", '"stored": lambda seed', '"stored": lambda _seed', {"stored"},
    ),
    "a loss": (
        "rfpp_core.training.losses", "return (v - target).square()", "return (v - target).abs()", {"l2"},
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
        "rfpp_core.training.perceptual", "EPS = 1e-20", "EPS = 1e-10", {"lpips_huber"},
    ),
    "the training loop": (
        "rfpp_core.training.trainer", "state.step, seen = step + 1", "state.step, seen = 1 + step",
        set(LABELS),
    ),
    "the exactness settings": (
        "rfpp_core.runtime", "cudnn.allow_tf32 = tf32", "cudnn.allow_tf32 = True", set(LABELS),
    ),
    "the order of images": (
        "rfpp_core.rng", "def permutation(", "def permutation(x=1, *, ", set(LABELS),
    ),
    "an unused function": (
        "rfpp_core.training.couplings", "def stored(", "def unused():\n    pass\n\n\ndef stored(", set(),
    ),
    "a comment, a docstring, an annotation": (
        "rfpp_core.training.times", "def uniform(u: Tensor) -> Tensor:\n    \"\"\"The",
        "def uniform(u: int) -> int:  # why\n    \"\"\"One", set(),
    ),
    "a new entry of a table": (
        "rfpp_core.config.build", '    "uniform": lambda p: timesteps.uniform,',
        '    "uniform": lambda p: timesteps.uniform,\n    "new": lambda p: timesteps.new,', set(),
    ),
    "a param with a default": (
        "rfpp_core.config.params", "    a: Annotated[float", "    b: float = 1.0\n    a: Annotated[float",
        set(),
    ),
    "a message of a stage": (
        "pipeline.work.training_job", "images/s)", "images a second)", set(),
    ),
    "how pairs are stored": (
        "rfpp_core.pairs.store", "def verify(", "def check(self): pass\n\n    def verify(", set(),
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
    assert changed == {label for label in LABELS if label in users or users & set(label.split())}


def test_a_new_module_changes_nothing(source, monkeypatch):
    before = identities(source, monkeypatch)
    (source / "rfpp_core" / "new.py").write_text("def unused():\n    return 1\n")
    assert identities(source, monkeypatch) == before


def test_the_code_of_a_training_is_all_that_computes_and_nothing_that_speaks():
    """By name: a function that the trainer or a builder calls is there, terminal and files not."""
    roots = (identity.Name("pipeline.work.training_job", "prepare"), identity.Name("rfpp_core.training.trainer", "train"),
             identity.Name("pipeline.stages.reflow", "load"))  # fmt: skip
    chosen = {"u_shape", "pseudo_huber", "seeded", "small_unet", "velocity"}
    found = {f"{at.module}.{at.name}" for at in identity.closure(roots, chosen)}
    assert found >= {
        "rfpp_core.config.build.time_law", "rfpp_core.config.build.field", "rfpp_core.config.build.loss",
        "rfpp_core.training.times.u_shape", "rfpp_core.training.times.T_EPS", "rfpp_core.training.ema.update",
        "rfpp_core.training.couplings.seeded", "rfpp_core.training.losses.pseudo_huber", "rfpp_core.rng.philox",
        "rfpp_core.model.nets.small_unet.SmallUNet", "rfpp_core.model.nets.layers.Attention",
        "rfpp_core.model.precond.PlainVelocity", "rfpp_core.images.loader.batches", "rfpp_core.runtime.exact",
        "rfpp_core.training.trainer.TrainState", "rfpp_core.images.pixels.to_float",
    }  # fmt: skip
    assert not {name for name in found if name.startswith((
        "rfpp_core.model.nets.edm_layers", "rfpp_core.training.perceptual", "rfpp_core.pairs.store", "rfpp_core.storage.files",
        "pipeline.work.workdir", "rfpp_core.config.params", "rfpp_core.sampling.sampler",
    ))}  # fmt: skip
    assert not found & {"rfpp_core.training.times.uniform", "rfpp_core.training.couplings.stored",
                        "rfpp_core.training.losses.l2", "pipeline.work.training_job.run"}  # fmt: skip


@pytest.mark.parametrize("name", ["small_unet", "ncsnpp", "ddpmpp", "adm"])
def test_every_network_is_built_by_the_table(name):
    arch = build.architecture_of(
        build.architecture(Network(arch=name, channels=64), (3, 32, 32), 0)
    )
    section = params.Training()
    modules = training_job.code_of("pretrain", section, arch, {"coupling": "independent"})
    of_net = {m for m in modules if m.startswith("rfpp_core.model.nets")}
    own = {"small_unet": "small_unet", "adm": "dhariwal_unet"}.get(name, "song_unet")
    shared = "layers" if name == "small_unet" else "edm_layers"
    assert of_net == {f"rfpp_core.model.nets.{own}", f"rfpp_core.model.nets.{shared}"}


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

    for section in (*training_job.SECTIONS.values(), Architecture, params.Features):
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


def test_a_section_is_identified_by_what_differs_from_its_defaults():
    section = params.Reflow.model_validate({"steps": 100, "log_every": 10, "times": {"a": 4.0}})
    assert build.training_identity(section) == {"steps": 100}
    section = params.Reflow.model_validate({"times": {"law": "uniform"}, "loss": {"c": 1.0}})
    assert build.training_identity(section) == {"times": {"law": "uniform"}, "loss": {"c": 1.0}}


def test_presets_say_the_same_with_and_without_their_defaults():
    for path in (ROOT / "presets").glob("*.yaml"):
        whole = params.load(path)
        short = params.parse(whole.model_dump(mode="json", exclude_defaults=True))
        assert short == whole
        for name in ("pretrain", "reflow", "finetune"):
            one, other = (build.training_identity(getattr(c, name)) for c in (whole, short))
            assert one == other
        assert yaml.safe_load(path.read_text())
