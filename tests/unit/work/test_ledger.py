"""Budgets: network forwards, an image each, of a flow and of all that it descends from."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.cli import presets
from pipeline.stages import network
from pipeline.work import ledger, pair_job, training_job, training_run
from rfpp_core.config import build, params, yaml_file
from rfpp_core.images import sources
from rfpp_core.images import store as image_store
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint

TRAINED = 47  # images of the training split

CONFIG_G = """
networks: {edm: {channels: 8, precond: edm, checkpoint: x, sha256: "%s"}}
recipes:
  keep: {steps: 0}
  reflow: {steps: 100, batch: 10}
  finetune: {steps: 50, batch: 4, mix: 0.0}
pairs:
  pairs2: {teacher: flow1, n: 40, shard: 20, micro_batch: 5, solver: edm-heun, nfe: 7}
  inverted: {teacher: flow1, source: images, shard: 20, micro_batch: 5, solver: edm-heun, nfe: 12}
flows:
  flow1: {recipe: keep, data: images, mix: images, start: edm}
  flow2: {recipe: reflow, data: pairs2, mix: images, start: flow1}
  flow3: {recipe: finetune, data: inverted, mix: pairs2, start: flow2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    artifacts.PARAMS.write_text(presets.composed("digits"))
    source = sources.digits().take(np.arange(60))
    image_store.write(artifacts.IMAGES, source, np.arange(60) >= TRAINED)
    return tmp_path


def default_graph(**changes: object) -> params.Params:
    raw = yaml_file.parse(presets.composed("digits"), "digits")
    for where, value in changes.items():
        raw[where] |= value
    return params.parse(raw)


def trained(name: str, config: params.Params) -> dict:
    """Writes the model file of a flow as if it were trained; what its metadata say of it."""
    if not config.recipe_of(name).steps:
        training_run.keep(name, config)
    else:
        job = training_job.job_of(name, config)
        document = training_job.metadata_of(job, "curve", ())
        field = build.field(job.architecture, seed=len(name) + job.recipe.steps)
        checkpoint.save(artifacts.model(name), field.state_dict(), document)
    return checkpoint.load(artifacts.model(name)).metadata["provenance"]


def generated(name: str, config: params.Params) -> None:
    """Writes the store of a row of pairs as if its teacher had made them."""
    job = pair_job.job_of(name, config)
    store = PairStore.create(job.target, job.spec, job.n)
    for shard in store.missing():
        size = np.subtract(*reversed(store.span(shard)))
        noise = np.zeros((size, *job.spec.shape), np.float32) if job.spec.stored else None
        images = np.zeros((size, *job.spec.shape), np.uint8)
        store.commit(shard, Pairs(images, np.full(size, -1, np.int16), noise))


def imported(config: params.Params, stated: int = 0) -> None:
    """Writes the network of config G as an import does."""
    arch = build.architecture(config.networks["edm"], (1, 8, 8), 0)
    provenance = {"stage": "import", "budget": 0, "budget_with_ancestors": stated}
    document = {"architecture": arch, "start": 80 / 81, "provenance": provenance}
    artifacts.model("edm").parent.mkdir()
    checkpoint.save(artifacts.model("edm"), build.field(arch).state_dict(), document)


def test_an_ancestor_reached_by_two_ways_counts_once():
    teacher = {"train/a": 5, "pairs/b": 7}
    assert ledger.union(teacher, {**teacher, "pairs/c": 1}, {}) == {**teacher, "pairs/c": 1}
    assert ledger.union() == {}


def test_the_ledger_of_a_file():
    digest = "f" * 64
    own = {"provenance": {"ledger": {"train/a": 5}, "budget_with_ancestors": 5}}
    assert ledger.of(own, digest) == {"train/a": 5}
    stated = {"provenance": {"budget_with_ancestors": 9}}
    assert ledger.of(stated, digest) == {"import/ffffffffffffffff": 9}
    assert ledger.of({"provenance": {"budget_with_ancestors": 0}}, digest) == {}


def test_the_default_graph(here):
    """flow1 is start and teacher of flow2, and counts once."""
    config = default_graph()
    network.run("unet")
    first = trained("flow1", config)
    pretraining = 3 * 1300 * 128
    assert first["budget"] == first["budget_with_ancestors"] == pretraining
    generated("pairs2", config)
    second = trained("flow2", config)
    assert second["budget"] == 20_000 * 10 + 3 * 3300 * 64
    assert second["budget_with_ancestors"] == second["budget"] + pretraining
    assert sorted(key.partition("/")[0] for key in second["ledger"]) == ["pairs", "train", "train"]


def test_a_third_round_counts_the_rounds_before_it_once(here):
    config = default_graph(
        pairs={"pairs3": {"teacher": "flow2", "n": 2000, "solver": "euler", "nfe": 1}},
        flows={"flow3": {"recipe": "reflow", "data": "pairs3", "mix": "images", "start": "flow2"}},
    )
    network.run("unet")
    trained("flow1", config)
    generated("pairs2", config)
    second = trained("flow2", config)
    generated("pairs3", config)
    third = trained("flow3", config)
    assert third["budget"] == 2000 * 1 + 3 * 3300 * 64
    assert third["budget_with_ancestors"] == third["budget"] + second["budget_with_ancestors"]


def test_a_row_of_the_same_recipe_is_another_training(here):
    """Of other pairs, though it has the same number of forwards."""
    config = default_graph(flows={
        "again": {"recipe": "reflow", "data": "images", "mix": "images", "start": "flow1"},
        "both": {"recipe": "reflow", "data": "pairs2", "mix": "images", "start": "again"},
    })  # fmt: skip
    network.run("unet")
    trained("flow1", config)
    generated("pairs2", config)
    trained("again", config)
    both = trained("both", config)
    own = 3 * 3300 * 64
    assert both["budget_with_ancestors"] == 3 * 1300 * 128 + 20_000 * 10 + own + own


@pytest.mark.parametrize("mix", ["0.0", "0.5"])
@pytest.mark.parametrize("stated", [0, 1000])
def test_config_g(here, mix, stated):
    """Fine-tuning on inverted images: the first pairs count once, mixed in again or not."""
    text = CONFIG_G.replace("mix: 0.0", f"mix: {mix}") % ("0" * 64)
    config = params.parse(yaml_file.parse(text, "config G"))
    imported(config, stated)
    first = trained("flow1", config)
    assert (first["budget"], first["budget_with_ancestors"]) == (0, stated)
    generated("pairs2", config)
    generated("inverted", config)
    second, third = trained("flow2", config), trained("flow3", config)
    pairs, inverted = 40 * 7, TRAINED * 12
    assert second["budget"] == pairs + 3 * 100 * 10
    assert second["budget_with_ancestors"] == second["budget"] + stated
    mixed_in = pairs if mix == "0.5" else 0
    assert third["budget"] == inverted + mixed_in + 3 * 50 * 4
    assert third["budget_with_ancestors"] == (stated + second["budget"] + inverted + 3 * 50 * 4)
