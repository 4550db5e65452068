"""A flow's own grids: searched once, the same for every batch size, and refused by other flows."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from pipeline import artifacts
from pipeline.work import evaluation_job, grid_job
from pipeline.work.results import Results
from rfpp_core import rng
from rfpp_core.config import build, grid_file, params
from rfpp_core.errors import UserError
from rfpp_core.sampling import grid_search, grids
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.storage import files
from tests.helpers import save_tiny
from tests.unit.config.rows import changed, refused

ASKED = {"n": 30, "anchors": 12, "most": 4, "seed": 3}
EVALUATE = (("evaluate.nfe", [1, 2, 4]), ("evaluate.many_nfe", 5), ("evaluate.n", 10),
            ("evaluate.neighbours", 3), ("evaluate.seeds", 1),
            ("evaluate.grid_search", {"n": 30, "anchors": 12}))  # fmt: skip


@pytest.fixture
def flow(tmp_path) -> Flow:
    return build.load_flow(save_tiny(tmp_path / "flow.safetensors"))


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path)


def config(*more) -> params.Params:
    return params.parse(changed(*EVALUATE, *more))


def test_the_grids_are_those_of_the_matrix_of_all_paths(flow, results):
    """Against one batch, with the noise drawn here."""
    found = grid_job.search(flow, **ASKED, found=results)
    grid = grids.uniform(12)
    z = rng.normal(rng.subkey(3, "grid search"), torch.arange(30), flow.shape)
    with torch.inference_mode():
        matrix = grid_search.costs(grid_search.gram(flow.field, z, grid) / 30, grid)
    for steps, path in enumerate(grid_search.cheapest(matrix, 4), 1):
        assert found.times[str(steps)] == tuple(grid[list(path.anchors[:-1])].tolist())
        assert found.costs[str(steps)] == pytest.approx(path.cost, rel=1e-4)
        assert found.costs[str(steps)] <= found.uniform_costs[str(steps)]
    assert list(found.times) == ["1", "2", "3", "4"]
    assert found.flow == flow.digest


def test_the_size_of_a_batch_changes_nothing(flow, results, tmp_path, monkeypatch):
    whole = grid_job.search(flow, **ASKED, found=results)
    monkeypatch.setattr(grid_job, "BYTES", 8 * 12 * 64 * 7)
    assert grid_job.batch_size(flow, 12) == 7
    again = grid_job.search(flow, **ASKED, found=Results(tmp_path / "other"))
    assert again.times == whole.times
    assert again.costs == pytest.approx(whole.costs, rel=1e-4)


def test_a_search_and_a_comparison_are_made_once(flow, results, monkeypatch):
    samplers = [SamplerConfig("euler", 2)]
    found = grid_job.search(flow, **ASKED, found=results)
    errors = grid_job.errors(flow, found, samplers, results)
    for name in ("searched", "distances"):
        monkeypatch.setattr(grid_job, name, lambda *_: pytest.fail("made again"))
    assert grid_job.search(flow, **ASKED, found=results) == found
    assert grid_job.errors(flow, found, samplers, results) == errors


@pytest.mark.parametrize("change", [{"n": 31}, {"anchors": 13}, {"most": 3}, {"seed": 4}])
def test_what_determines_a_grid_is_in_its_key(flow, results, monkeypatch, change):
    grid_job.search(flow, **ASKED, found=results)
    made = []
    value = {"times": {"1": [1.0]}, "costs": {"1": 0.0}, "uniform_costs": {"1": 0.0}}
    monkeypatch.setattr(grid_job, "searched", lambda *given: made.append(given) or value)
    grid_job.search(flow, **{**ASKED, **change}, found=results)
    assert len(made) == 1


def test_the_distance_of_a_sampler_is_that_of_its_images(flow, results):
    found = grid_job.search(flow, **ASKED, found=results)
    samplers = [SamplerConfig("euler", 2), grid_job.sampler(found, 4), grid_job.fine(flow, 12)]
    errors = grid_job.errors(flow, found, samplers, results)
    z = rng.normal(rng.subkey(3, "endpoint errors"), torch.arange(30), flow.shape)
    fine = flow.decode(z, SamplerConfig("euler", 12))
    for sampler, error in zip(samplers, errors, strict=True):
        expected = (flow.decode(z, sampler) - fine).double().square().mean()
        assert error == pytest.approx(float(expected), rel=1e-6)
    assert errors[-1] == 0 < min(errors[:2])


def test_labels_are_drawn_for_a_conditional_flow(tmp_path, results):
    flow = build.load_flow(save_tiny(tmp_path / "c.safetensors", classes=3))
    found = grid_job.search(flow, **ASKED, found=results)
    assert grid_job.errors(flow, found, [grid_job.sampler(found, 2)], results)[0] > 0


def test_an_imported_flow_begins_at_its_own_start(flow, results):
    late = Flow(flow.field, flow.shape, 0, flow.digest, {**flow.metadata, "start": 80 / 81})
    found = grid_job.search(late, **ASKED, found=results)
    assert {times[0] for times in found.times.values()} == {80 / 81}
    sampler = grid_job.sampler(found, 4)
    assert sampler.plan(80 / 81)[0].tolist() == [*found.times["4"], 0]
    assert grid_job.errors(late, found, [sampler, grid_job.fine(late, 12)], results)[1] == 0


def measured(flow, config, results, monkeypatch):
    """The table of a flow with made-up distances, as the stage puts it together."""
    monkeypatch.setattr(evaluation_job, "measure", lambda *_: {"fd_classifier": 1.0})
    row, section = config.flows["flow2"], config.evaluate
    own = grid_job.own(flow, section, config.seed, results)
    more = grid_job.samplers(own, section, row)
    real = SimpleNamespace(rows={})
    lines = evaluation_job.table(flow, real, config, row, results, "flow2", more)
    errors = grid_job.add_errors(lines, flow, own, section, row, results)
    return own, lines, evaluation_job.primary_metrics(real, lines), errors


def test_a_table_has_the_own_grid_beside_the_uniform_one(flow, results, monkeypatch):
    own, lines, _, errors = measured(flow, config(), results, monkeypatch)
    found = [(line["solver"], line["nfe"]) for line in lines]
    assert found == [("euler", 1), ("euler", 2), ("euler", 4), ("heun", 5),
                     ("euler-boss", 2), ("euler-boss", 4)]  # fmt: skip
    by_row = errors["endpoint_error"]
    assert list(by_row) == ["nfe1", "nfe2", "nfe4", "nfe5", "nfe2_boss", "nfe4_boss"]
    assert [line["endpoint_error"] for line in lines] == list(by_row.values())
    sampler = SamplerConfig("euler", 4, times=own.times["4"])
    expected = grid_job.errors(flow, own, [sampler], results)[0]
    assert by_row["nfe4_boss"] == pytest.approx(expected, rel=1e-4)


def test_a_grid_of_ones_own_is_compared_with_the_uniform_one_too(flow, results, monkeypatch):
    given = config(("evaluate.grids", {"2": [1.0, 0.8]}), ("evaluate.adaptive", True))
    _, lines, _, errors = measured(flow, given, results, monkeypatch)
    by_row = errors["endpoint_error"]
    assert len({by_row[name] for name in ("nfe2", "nfe2_boss", "nfe2_uniform")}) >= 2
    assert by_row["nfe2"] != by_row["nfe2_uniform"]
    assert [line["endpoint_error"] for line in lines if line["solver"] == "rk45"] == [None]


def test_metrics_name_the_own_grid(flow, results, monkeypatch):
    monkeypatch.setattr(evaluation_job, "measure", lambda *_: {"fd_classifier": 1.0})
    line = evaluation_job.row_of(SamplerConfig("euler-boss", 4), 10, [{"fd_pixels": 2.0}])
    assert evaluation_job._key(line) == "nfe4_boss"


def test_without_a_search_a_table_is_as_before(flow, results, monkeypatch):
    plain = config(("evaluate.grid_search", {"n": 0}))
    own, lines, _, errors = measured(flow, plain, results, monkeypatch)
    assert (own, errors) == (None, {})
    assert [line["solver"] for line in lines] == ["euler", "euler", "euler", "heun"]
    assert "endpoint_error" not in lines[0]
    assert not list(results.folder.glob("*.json"))


def test_the_grids_lie_beside_the_pictures(flow, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = grid_job.search(flow, **ASKED, found=results)
    grid_job.publish(found, "flow2")
    assert grid_file.read(artifacts.grid("flow2"), flow.digest) == found
    grid_job.publish(None, "flow2")
    assert not artifacts.grid("flow2").exists()


def test_a_grid_of_another_model_is_refused(flow, results, tmp_path):
    path = tmp_path / "grid.json"
    found = grid_job.search(flow, **ASKED, found=results)
    files.write_json(path, found.model_dump(mode="json"))
    with pytest.raises(UserError, match=r"was searched for another model .* `rfpp grid`"):
        grid_file.read(path, "0" * 64)
    with pytest.raises(UserError, match=r"grids of 1 to 4 steps, and 5 NFE by euler are 5"):
        grid_file.times_for(found, "euler", 5)
    assert grid_file.times_for(found, "midpoint", 8) == found.times["4"]
    with pytest.raises(UserError, match="unknown solver"):
        grid_file.times_for(found, "rk45", 4)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "[" * 100_000, "\x00", '{"format": 2}', '{"flow": "' + "a" * 64 + '"}',
])  # fmt: skip
def test_a_file_that_is_no_grid_file_is_refused(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a grid file of this version"):
        grid_file.read(path, "a" * 64)


def test_times_of_a_grid_file_are_checked_as_any_times(flow, results, tmp_path):
    found = grid_job.search(flow, **ASKED, found=results).model_dump(mode="json")
    found["times"]["2"] = [1.0, 1.5]
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(found))
    times = grid_file.times_for(grid_file.read(path, flow.digest), "euler", 2)
    with pytest.raises(UserError, match="must fall strictly"):
        SamplerConfig("euler", 2, times=times).plan()


def test_params_of_a_search():
    assert config().evaluate.searched == (2, 4)
    assert config(("evaluate.grid_search", {"n": 5, "anchors": 3})).evaluate.searched == (2,)
    assert params.parse(changed()).evaluate.searched == ()
    said = refused(changed(*EVALUATE, ("evaluate.nfe", [1, 20])))
    assert "grid_search finds grids of 2 to 12 (its anchors) steps, and nfe names none" in said
    said = refused(changed(*EVALUATE, ("evaluate.grid_search", {"n": 5, "anchors": 1})))
    assert "evaluate.grid_search.anchors is 1" in said


def test_the_column_is_in_the_csv(flow, results, monkeypatch, tmp_path):
    _, lines, _, _ = measured(flow, config(), results, monkeypatch)
    files.write_csv(tmp_path / "t.csv", lines)
    with (tmp_path / "t.csv").open() as file:
        assert all(float(line["endpoint_error"]) >= 0 for line in csv.DictReader(file))


def test_the_code_of_the_search_is_in_its_key_and_in_no_other(flow):
    sampler = SamplerConfig("euler", 2)
    own = evaluation_job.code_of(flow, sampler, ["searched"], "grid_job")
    other = evaluation_job.code_of(flow, sampler, ["drawn", "measures"])
    assert {"rfpp_core.sampling.grid_search", "pipeline.work.grid_job"} <= set(own)
    assert not {"rfpp_core.sampling.grid_search", "pipeline.work.grid_job"} & set(other)
