"""The forecast counts what a run does, by rates that are probed."""

import pytest
import zarr

from pipeline.bench import forecast
from pipeline.bench.probe import DataShape, Probe
from pipeline.cli import bench, main, plan, presets
from rfpp_core.config import params
from rfpp_core.config.params import Params
from rfpp_core.evaluation import network_size

DATA = DataShape((1, 8, 8), 100, 40, 10)
RATES = {"start": 2.0, "pool": 5.0, "metric": 0.5, "classifier": 3.0}
RUN = """
seed: 0
dataset: {name: digits}
networks: {unet: {arch: small_unet, channels: 8, multipliers: [1, 2], precond: velocity}}
recipes:
  first: {steps: 1000, batch: 8, lr: 0.001}
  keep: {steps: 0}
pairs:
  pairs2: {teacher: flow1, n: 2000, solver: midpoint, nfe: 4}
  inverted: {teacher: flow1, source: images, solver: midpoint, nfe: 4, shard: 50, micro_batch: 50}
flows:
  flow1: {recipe: first, data: images, mix: images, start: unet}
  flow2: {recipe: first, data: pairs2, mix: images, start: flow1}
  same: {recipe: keep, data: images, mix: images, start: flow2}
evaluate: {n: 100, seeds: 2, nfe: [1, 2], many_nfe: 7}
"""


@pytest.fixture
def run(tmp_path) -> Params:
    (tmp_path / "params.yaml").write_text(RUN)
    return params.load(tmp_path / "params.yaml")


@pytest.fixture
def rates(monkeypatch) -> None:
    """Known rates instead of measured ones."""
    for name, value in RATES.items():
        monkeypatch.setattr(Probe, name, lambda self, *_, value=value: value)
    monkeypatch.setattr(Probe, "update", lambda self, flow, accumulate: 0.01)
    monkeypatch.setattr(Probe, "forward", lambda self, *_: 1e-4)
    monkeypatch.setattr(Probe, "properties", lambda self, network: 4.0)


@pytest.fixture
def probe(run, rates) -> Probe:
    return Probe(run, DATA)


def test_every_stage_of_the_run_is_forecast(probe):
    names = [(row.stage, row.name) for row in forecast.rows(probe)]
    flows = ["flow1", "flow2", "same"]
    assert names == [
        ("source", ""), ("preflight", ""), ("prepare", ""), ("reference", ""),
        ("network", "unet"), *(("train", name) for name in flows),
        ("generate", "pairs2"), ("generate", "inverted"),
        *(("evaluate", name) for name in flows), ("report", ""),
    ]  # fmt: skip


def test_seconds_and_evaluations_by_hand(probe):
    rows = {f"{row.stage}@{row.name}": row for row in forecast.rows(probe)}
    assert rows["train@flow1"].seconds == pytest.approx(2 + 10)
    assert rows["train@flow1"].forwards == 3 * 8 * 1000  # as the budget counts them
    assert rows["train@same"].seconds == 2
    assert rows["generate@pairs2"].forwards == 2000 * 4
    assert rows["generate@pairs2"].seconds == pytest.approx(2 + 5 + 0.8)
    assert rows["generate@pairs2"].disk == 2000 * 64
    assert rows["generate@inverted"].forwards == 100 * 4
    assert rows["generate@inverted"].disk == 100 * 64 * 5
    # two seeds at 1 and 2 NFE, one of 7, four times one for the rate
    assert rows["evaluate@flow2"].forwards == 100 * (2 * 3 + 7 + 4)
    assert rows["evaluate@flow2"].seconds == pytest.approx(2 + 0.17 + 5 * 0.5 + 4)


def test_steps_and_pairs_that_fill_the_hours(probe, run):
    rows = list(forecast.rows(probe))
    varied = 2 * 10 + 0.8  # both trainings and the pairs of noise; not what starts a stage
    fixed = sum(r.seconds for r in rows) - varied
    text = plan._scaled(run, rows, (fixed + 3 * varied) / 3600)
    assert "recipes.first.steps=3000" in text
    assert "pairs.pairs2.n=6000" in text
    assert "no steps and pairs" in plan._scaled(run, rows, 0.9 * fixed / 3600)


def test_memory_of_a_step_is_what_the_backward_pass_needs(run):
    """Twice the batch keeps twice the bytes: the count leaves out weights, which do not grow."""
    flow = Probe(run, DATA).flow(run.networks["unet"])
    kept = forecast.saved_bytes(flow.field, flow.shape)
    pixels = 4 * 8 * 64  # bytes of one activation of the finer level, an image
    assert 5 * pixels < kept < 100 * pixels


def test_accumulate_is_proposed_where_a_batch_does_not_fit(probe, monkeypatch):
    field = probe.flow(probe.params.networks["unet"]).field
    need = 4.5 * forecast.saved_bytes(field, (1, 8, 8)) + 20 * network_size.parameters(field)
    monkeypatch.setattr(forecast, "memory", lambda device: need / forecast.USED)
    found = {row.name: row.note for row in forecast.rows(probe) if row.stage == "train"}
    assert found["flow1"] == "set accumulate: 2"


def test_several_processes_are_said_not_to_be_in_it(probe, monkeypatch):
    monkeypatch.setenv("RFPP_PROCESSES", "2")
    notes = {row.name: row.note for row in forecast.rows(probe) if row.stage == "train"}
    assert notes["flow1"] == "of one process; RFPP_PROCESSES is not in it"


@pytest.mark.slow
@pytest.mark.long
def test_the_command_forecasts_a_run_that_was_not_begun(tmp_path, monkeypatch, capsys, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setattr("sys.argv", ["rfpp", "plan", "--hours", "1", "--out", "plan.json"])
    with pytest.raises(SystemExit) as ended:
        main.entry()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "generate@inverted" in out
    assert "in all" in out
    assert "in 1 hours" in out
    assert (tmp_path / "plan.json").exists()


def test_hours_must_be_positive(tmp_path, monkeypatch, capsys, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rfpp", "plan", "--hours", "0"])
    with pytest.raises(SystemExit, match="2"):
        main.entry()
    assert capsys.readouterr().err.startswith("rfpp: --hours is 0")


def test_images_of_other_params_decide_nothing(run, tmp_path, monkeypatch):
    """As after `rfpp preset`, before `dvc repro`."""
    monkeypatch.chdir(tmp_path)
    group = zarr.open_group(tmp_path / "data/images.zarr", mode="w", zarr_format=3)
    group.attrs["rfpp"] = {"name": "cifar10", "shape": [3, 32, 32], "classes": 10}
    assert not bench.prepared(run)
    assert plan._data(run) == DataShape((1, 8, 8), 1438, 359, 10)
    limited = run.dataset.model_copy(update={"limit": 599})
    assert plan._data(run.model_copy(update={"dataset": limited})).train == 479


def test_a_flow_between_domains_is_counted_by_its_images(tmp_path, rates):
    (tmp_path / "params.yaml").write_text(presets.composed("transfer"))
    config = params.load(tmp_path / "params.yaml")
    rows = {f"{row.stage}@{row.name}": row for row in forecast.rows(Probe(config, DATA))}
    assert rows["generate@pairs2"].forwards == 50 * 18  # half of the classes of 100 images
    few = 20 * (1 + 2 + 4 + 8 + 35)  # each of 20 held-out images once
    assert rows["evaluate@flow2"].forwards == few + 4 * 20
