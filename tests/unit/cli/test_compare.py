"""``rfpp compare``: paired statistics over training seeds, of experiments that belong together."""

from __future__ import annotations

import time

import numpy as np
import pytest
import yaml
from scipy import stats

from pipeline.cli import compare
from pipeline.cli.compare import Experiment
from rfpp_core.config import params
from tests.helpers import ROOT, SMOKE, Project

FLOWS = {
    "flow1": {"recipe": "pretrain", "data": "images", "mix": "images", "start": "unet"},
    **{name: {"recipe": "reflow", "data": "pairs2", "mix": "images", "start": "flow1"}
       for name in ("flow2", "control")},
}  # fmt: skip


def config(seed: int = 0, n: int = 200) -> params.Params:
    raw = yaml.safe_load(SMOKE)
    raw["evaluate"] |= {"n": n, "nfe": [1, 2], "many_nfe": 5}
    return params.parse({**raw, "seed": seed, "flows": FLOWS})


def experiment(seed: int, n: int = 200, name: str = "", **nfe1: float) -> Experiment:
    """A run; its distances at one evaluation by flow."""
    metrics = {
        flow: {"fd_classifier": {"floor": 0.5, "held_out": 1.0, "nfe1": value, "nfe2": value / 2,
                                 "nfe5": 1.5},
               "budget_with_ancestors": 1234567}
        for flow, value in {"flow1": 9.0, "flow2": 2.0, "control": 3.0, **nfe1}.items()
    }  # fmt: skip
    return Experiment(name or f"exp-{seed}", config(seed, n), metrics)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(chosen: list[Experiment], to: str) -> list[dict[str, list[str]]]:
    """The cells of each table by flow."""
    text = "\n".join(compare.report(config(), chosen, to))
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    return [{cells(line)[0]: cells(line)[1:] for line in table[2:]} for table in tables]


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_those_of_scipy(n, seed):
    values = np.random.default_rng(seed).normal(0.5, 1, n)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    half = compare.half_width(values)
    np.testing.assert_allclose([values.mean() - half, values.mean() + half], [low, high])
    scale = values.std(ddof=1) / np.sqrt(n)
    np.testing.assert_allclose([low, high], stats.t.interval(0.95, n - 1, values.mean(), scale))
    assert compare.interval(values) == f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_is_the_t_test_at_5_percent(seed):
    generator = np.random.default_rng(seed)
    gaps = generator.normal(generator.choice([-1, 0, 1]), 1, 5)
    significant = stats.ttest_1samp(gaps, 0).pvalue < 0.05
    expected = ("worse" if gaps.mean() > 0 else "better") if significant else "no difference seen"
    assert compare.verdict(gaps) == expected


def test_equal_gaps():
    assert compare.verdict(np.zeros(3)) == "no difference seen"
    assert compare.verdict(np.full(3, 0.25)) == "worse"
    assert compare.verdict(np.full(3, -0.25)) == "better"


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than flows do; only pairs of the same seed show it."""
    levels = {3: 40.0, 1: 10.0, 2: 20.0}
    chosen = compare.same_but_for_the_seed(
        [experiment(s, flow2=v, control=v + 1 + s / 100) for s, v in levels.items()], config()
    )
    assert [e.seed for e in chosen] == [1, 2, 3]
    means, gaps = rows(chosen, "flow2")
    assert set(means) == {"flow1", "flow2", "control"}
    assert set(gaps) == {"control"}  # flow1 has no teacher: it is no rival
    expected = np.array([1.01, 1.02, 1.03])
    assert gaps["control"][0] == f"{compare.interval(expected)}: worse"
    assert gaps["control"][1] == f"{compare.interval(expected / 2)}: worse"
    assert rows(chosen, "control")[1]["flow2"][0].endswith("better")
    assert means["flow2"][0] == compare.interval(np.array([10.0, 20.0, 40.0]))
    assert means["flow2"][-1] == "1,234,567"


def test_ratios_are_of_excesses_over_the_floor_to_the_teachers():
    chosen = [experiment(1, flow2=3.5), experiment(2, flow2=4.5)]  # floor 0.5, teacher 1.5
    means, _ = rows(chosen, "flow2")
    assert means["flow2"][2] == compare.interval(np.array([3.0, 4.0]))
    assert means["flow1"][2:4] == ["", ""]
    at_floor = [experiment(seed, flow2=3.5) for seed in (1, 2)]
    at_floor[1].metrics["flow1"]["fd_classifier"]["nfe5"] = 0.5
    assert rows(at_floor, "flow2")[0]["flow2"][2:4] == ["", ""]


def test_other_params_are_not_mixed():
    found = [experiment(1), *(experiment(s, n=300) for s in (1, 2, 3)), experiment(2)]
    assert [e.seed for e in compare.same_but_for_the_seed(found, config())] == [1, 2]
    assert {e.params.evaluate.n for e in compare.same_but_for_the_seed(found, config())} == {200}
    assert len(compare.same_but_for_the_seed(found, config(n=300))) == 3
    assert compare.differences(config(1, 300), config(2, 200)) == ["evaluate.n"]


def test_of_a_seed_the_newest_counts():
    found = [experiment(1, name="new"), experiment(1, name="old"), experiment(2)]
    assert [e.name for e in compare.same_but_for_the_seed(found, config())] == ["new", "exp-2"]


@pytest.mark.parametrize(("found", "said"), [
    ([], "those of no seed with these params"),
    ([experiment(7)], "those of seed 7 alone with these params"),
    ([experiment(7), *(experiment(s, n=300) for s in range(2))],
     "2 other results differ in more than the seed (the first in evaluate.n)"),
])  # fmt: skip
def test_too_few_seeds_are_one_line(found, said):
    line = compare.too_few(found, compare.same_but_for_the_seed(found, config()), config())
    assert said in line
    assert "`dvc exp run --queue -S 'seed=range(1,6)'` and `dvc queue start` make five" in line
    assert line.isprintable()


@pytest.mark.parametrize("missing", [None, float("nan"), "x"])
def test_a_metric_that_is_no_number_makes_a_result_incomplete(missing):
    one = experiment(1).metrics["flow2"]
    assert compare._has_numbers(config(), one)
    one["fd_classifier"]["nfe2"] = missing
    assert not compare._has_numbers(config(), one)
    assert not compare._has_numbers(config(), {})


STAGES = """
vars: [params.yaml]
stages:
  evaluate:
    foreach: ${flows}
    do:
      cmd: python measure.py ${key}
      params: [seed, evaluate, "flows.${key}"]
      metrics: ["metrics/${key}.json"]
"""
MEASURE = """
import json, pathlib, random, sys, yaml
flow, config = sys.argv[1], yaml.safe_load(open("params.yaml"))
level = config["seed"] + {"flow1": 5.0, "flow2": 0.0, "control": 1.0}[flow]
found = {"floor": 0.05, "held_out": 0.4, "nfe1": level, "nfe2": level + config["evaluate"]["n"],
         "nfe5": 0.1}
path = pathlib.Path(f"metrics/{flow}.json")
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps({"fd_classifier": found, "budget_with_ancestors": 1000}))
"""


@pytest.fixture
def tiny(tmp_path):
    """A project of git and DVC whose stages write metrics and nothing else."""
    path = tmp_path / "tiny"
    (path / ".dvc").mkdir(parents=True)
    (path / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    (path / "params.yaml").write_text(
        yaml.safe_dump(config().model_dump(mode="json"), sort_keys=False)
    )
    (path / "dvc.yaml").write_text(STAGES)
    (path / "measure.py").write_text(MEASURE)
    (path / ".gitignore").write_text("/metrics/\n")
    project = Project(path)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        project.run("git", *command)
    yield project
    project.run("dvc", "queue", "stop", "--kill")


def compared(tiny, *args: str, ok: bool = True):
    return tiny.run("env", f"PYTHONPATH={ROOT}", "python", "-m", "pipeline.cli.main", "compare",
                    *args, ok=ok)  # fmt: skip


def finish_queue(tiny) -> None:
    """Runs the experiments of DVC's queue, to the end."""
    tiny.run("dvc", "queue", "start")
    end = time.monotonic() + 120
    while any(s in tiny.run("dvc", "queue", "status").stdout for s in ("Queued", "Running")):
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.long
def test_experiments_of_dvc_are_compared(tiny):
    """Results of other params, and metrics older than the params beside them, do not count."""
    done = compared(tiny, ok=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "those of no seed with these params" in done.stderr
    tiny.run("dvc", "exp", "run", "--queue", "-S", "seed=range(1,4)")
    tiny.run("dvc", "exp", "run", "--queue", "-S", "seed=range(5,7)", "-S", "evaluate.n=300")
    finish_queue(tiny)
    out = tiny.path / "table.md"
    text = compared(tiny, "--to", "flow2", "--out", str(out)).stdout
    assert text.startswith(
        "3 training seeds (1, 2, 3): fd_classifier to the training split, n = 200"
    )
    assert out.read_text() == text
    assert cells(text.splitlines()[-1]) == ["control", "1 [1, 1]: worse", "1 [1, 1]: worse"]
    tiny.run("dvc", "repro", "-q")
    assert compared(tiny).stdout.startswith("4 training seeds (0, 1, 2, 3)")
    tiny.edit("params.yaml", "seed: 0", "seed: 9")
    assert compared(tiny).stdout.startswith("3 training seeds (1, 2, 3)")  # 9 was not run
    tiny.edit("params.yaml", "n: 200", "n: 300")
    assert compared(tiny).stdout.startswith("2 training seeds (5, 6)")
    tiny.edit("params.yaml", "n: 300", "n: 400")
    done = compared(tiny, ok=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "5 other results differ in more than the seed (the first in evaluate.n)" in done.stderr
    done = compared(tiny, "--rev", "n\x1bope", ok=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert r"the experiments of 'n\x1bope'" in done.stderr


def test_a_flow_that_is_not_there_is_one_line(tmp_path, rfpp):
    (tmp_path / "params.yaml").write_text(SMOKE)
    done = rfpp("compare", "--to", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2, "", "rfpp: --to is 'x'; the flows of params.yaml are flow1, flow2\n",
    )  # fmt: skip


def test_outside_git_and_dvc_it_is_one_line(tmp_path, rfpp):
    (tmp_path / "params.yaml").write_text(SMOKE)
    done = rfpp("compare", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "DVC cannot show the experiments of 'HEAD'" in done.stderr
