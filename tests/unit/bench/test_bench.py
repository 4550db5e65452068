"""What ``rfpp bench`` measures is the right thing; how long it takes is no test."""

import json

import numpy as np
import pytest
import torch

from pipeline.bench import evaluate, forecast, generate, gpu, loader, measure, noise, scale, step
from pipeline.cli import bench, main
from rfpp_core.config import params
from rfpp_core.config.params import Params
from rfpp_core.errors import UserError
from rfpp_core.images import loader as images_loader
from rfpp_core.pairs.store import PairStore


def test_actions_take_turns_after_one_call_each():
    calls = []
    acts = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = measure.in_turns(acts, rounds=3, least=0)
    assert "".join(calls) == "abababab"
    assert found.keys() == {"a", "b"}


def test_ratios_are_to_the_first():
    seconds = {"ours": 2.0, "theirs": 8.0}
    a, b = measure.rates("g", "images/s", 100, seconds)
    assert (a.value, a.ratio, b.value, b.ratio) == (50, 1, 12.5, 0.25)
    a, b = measure.costs("g", "ms a shard", 4, seconds)
    assert (a.value, a.ratio, b.value, b.ratio) == (500, 1, 2000, 4)


def test_the_stand_in_gives_the_images_and_the_sequential_noise(tmp_path):
    images = loader.photographs(5, 32)
    other = loader.StandIn(tmp_path, images)
    draws = np.random.default_rng(0)
    for i in range(5):
        wanted = draws.standard_normal((3, 32, 32)).astype(np.float32)
        np.testing.assert_array_equal(other.noise(i), wanted)
        np.testing.assert_allclose(other.image(i), images[i] / 127.5 - 1, atol=1e-6)


def test_photographs_are_varied_and_those_of_a_seed():
    images = loader.photographs(20, 32)
    assert images.shape == (20, 3, 32, 32)
    assert images.std(axis=(1, 2, 3)).min() > 1
    np.testing.assert_array_equal(images, loader.photographs(20, 32))


def test_the_bench_s_store_is_a_complete_one(tmp_path):
    images = loader.photographs(4, 32)
    store = loader.pair_store(tmp_path / "p.zarr", images, 12, 6)
    assert PairStore.open(store.path).missing() == []
    np.testing.assert_array_equal(store.read_all().images, images[[i % 4 for i in range(12)]])


def test_batches_are_those_that_were_picked():
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    picked = images_loader.picked(images, torch.arange(20), 6, 3)
    batches = images_loader.batches(images, torch.arange(20), 6, 3, torch.device("cpu"))
    for _ in range(5):
        a, b = next(picked), next(batches)
        assert torch.equal(a.images, images[a.position])
        assert torch.equal(a.images / 127.5 - 1, b.x)
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.y, b.y)


@pytest.fixture
def quick(monkeypatch):
    """One turn each, as short as can be."""
    real = measure.in_turns
    for module in (loader, noise, step):
        monkeypatch.setattr(module, "in_turns", lambda acts, *_: real(acts, 1, 0))


SMALL = """
seed: 0
dataset: {name: digits}
networks: {unet: {arch: small_unet, channels: 8, multipliers: [1, 2], precond: velocity}}
recipes: {first: {steps: 50, batch: 8, lr: 0.001}}
pairs: {pairs2: {teacher: flow1, n: 16, shard: 8, micro_batch: 4, solver: midpoint, nfe: 4}}
flows:
  flow1: {recipe: first, data: images, mix: images, start: unet}
  flow2: {recipe: first, data: pairs2, mix: images, start: flow1}
features: {steps: 60}
evaluate: {n: 40, seeds: 1, nfe: [1], many_nfe: 3, straightness_n: 10}
"""


@pytest.fixture
def small(tmp_path) -> Params:
    (tmp_path / "params.yaml").write_text(SMALL)
    return params.load(tmp_path / "params.yaml")


def test_a_step_has_named_parts_that_make_the_whole(small, quick):
    figures = step.run(small, (1, 8, 8))
    assert {f.group.split(" on ")[0] for f in figures} == {"a step of flow1", "a step of flow2"}
    for group in {f.group for f in figures}:
        whole, *parts = [f for f in figures if f.group == group]
        assert whole.name == "the whole step"
        assert "the network, forward and backward" in {f.name for f in parts}
        assert sum(f.ratio for f in parts) == pytest.approx(1)


def test_noise_beside_its_references(quick, monkeypatch):
    monkeypatch.setattr(noise, "DRAWS", {"a few": (4, (1, 8, 8))})
    names = [f.name for f in noise.run()]
    assert names[:4] == ["torch.randn", "NumPy Philox", "as drawn here", "the definition"]
    assert names[-2:] == ["a step at a time", "ahead"]


def test_loader_beside_the_published_layout(quick, monkeypatch):
    monkeypatch.setattr(loader, "SIDES", (32,))
    monkeypatch.setattr(loader, "BATCH", 16)
    monkeypatch.setattr(loader, "SHARD", 32)
    figures = loader.run(64)
    assert [f.name for f in figures if f.unit == "pairs/s"] == [
        "published layout", "ours, in memory", "ours, paged",
    ]  # fmt: skip


def test_scale_of_small_and_large_stores(monkeypatch):
    monkeypatch.setattr(scale, "SHARD", 50)
    figures = scale.run(small=50, large=150, rounds=1, many=4)
    assert [f.name for f in figures[:4]] == ["50 pairs", "150 pairs"] * 2


@pytest.mark.slow
def test_generation_beside_the_network(small, monkeypatch):
    monkeypatch.setattr(generate, "ROUNDS", 1)
    monkeypatch.setattr(generate, "_arms", lambda device: {"one worker": ["cpu"]})
    figures = generate.run(small, (1, 8, 8))
    assert [f.name for f in figures] == ["the network by itself", "one worker"]
    assert all(f.value > 0 for f in figures)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_evaluation_beside_the_network(small, monkeypatch, workers):
    monkeypatch.setenv("RFPP_WORKERS", workers)
    monkeypatch.setattr(evaluate, "REAL", 100)
    figures = evaluate.run(small, (1, 8, 8), 300)
    assert [f.name for f in figures] == [
        "the network by itself", "drawn, as uint8", "features of classifier",
        "all metrics of the features", "from noise to metrics", "most that this process held",
    ]  # fmt: skip
    assert "500 images" in figures[0].group
    parts = [1 / f.value for f in figures[1:4]]
    assert 1 / figures[4].value == pytest.approx(sum(parts))


def test_stages_of_a_run_come_after_what_they_need(small):
    stages = [stage + ("@" + name[0] if name else "") for stage, name in gpu.order(small)]
    assert stages == ["preflight", "reference", "network@unet", "train@flow1", "generate@pairs2",
                      "train@flow2", "evaluate@flow1", "evaluate@flow2", "report"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_all_that_a_device_allows_at_toy_size(small, quick, tmp_path, monkeypatch, capfd):
    """The other benches are tested above; here the run, by known rates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    for module in (noise, loader, step, generate, evaluate):
        monkeypatch.setattr(module, "run", lambda *_: [])
    rows = [forecast.Row("train", "flow1", 100.0, 0, 0, varies=80.0)]
    monkeypatch.setattr(forecast, "rows", lambda probe: iter(rows))
    figures = gpu.run(small, 100 / 60)
    assert "recipes.first.steps" in capfd.readouterr().out
    assert (tmp_path / ".work/bench/report/index.html").exists()
    assert {f.name.split()[0] for f in figures} == {"flow1", "flow2"}
    with pytest.raises(UserError, match=r"minutes are left for the run, which takes 0\.3 without"):
        gpu.run(small, 0.01)


def test_the_command_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    figure = measure.Figure("a group", "a name", 2.0, "ms", 0.5)
    monkeypatch.setitem(bench.BENCHES, "noise", lambda minutes: [figure])
    bench.bench("noise", tmp_path / "found.json")
    assert "a name" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["figures"] == [figure._asdict()]
    assert found["machine"]


def test_an_unknown_bench_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rfpp", "bench", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        main.entry()
    assert capsys.readouterr().err == (
        "rfpp: there is no bench 'nothing'; there are noise, loader, scale, step, generate, "
        "evaluate, gpu\n"
    )


def test_there_must_be_something_to_measure(small):
    with pytest.raises(UserError, match="no row of pairs"):
        generate.run(small.model_copy(update={"pairs": {}}), (1, 8, 8))
    with pytest.raises(UserError, match="no flow"):
        step.run(small.model_copy(update={"flows": {}}), (1, 8, 8))


def test_a_step_with_a_perceptual_loss_in_parts(small, quick):
    recipe = small.recipes["first"]
    seen = recipe.loss.model_copy(update={"perceptual": "classifier"})
    recipe = recipe.model_copy(update={"loss": seen, "accumulate": 2})
    figures = step.run(small.model_copy(update={"recipes": {"first": recipe}}), (1, 8, 8))
    assert len(figures) == 12
