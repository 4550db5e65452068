"""The whole pipeline under DVC: killed anywhere it loses nothing and ends in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

import pytest

from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import files
from tests.helpers import Project, new_project, processes_in, ran

pytestmark = pytest.mark.slow
MODELS = ("models/flow1.safetensors", "models/flow2.safetensors")
PAIRS = "data/pairs2.zarr"
COMMITS = "pairs/*/pairs.zarr/commits/0*.json"


def results(project: Project) -> dict[str, str]:
    found = {name: files.sha256(project.path / name) for name in MODELS}
    return {**found, PAIRS: PairStore.open(project.path / PAIRS).digest()}


def kill_when(project: Project, there: Callable[[], bool], *command: str) -> None:
    """Starts a command, waits for something to be there and kills the whole process group."""
    process = project.start(*command)
    deadline = time.monotonic() + 180
    while not there():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _no_orphans(project)


def _no_orphans(project: Project) -> None:
    """What left the process group (workers, the private server) must leave by itself."""
    deadline = time.monotonic() + 20
    while there := processes_in(project.path):
        assert time.monotonic() < deadline, f"orphans: {there}"
        time.sleep(0.1)


def has(project: Project, pattern: str, count: int) -> Callable[[], bool]:
    return lambda: len(project.work(pattern)) >= count


def test_the_run_gave_everything(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    for name in ("report/index.html", "report/distance.png", "samples/flow2/nfe1.png",
                 "samples/flow2/trajectory.png", "curves/distance/flow2.csv"):  # fmt: skip
        assert (project.path / name).stat().st_size > 0
    metrics = json.loads((project.path / "metrics/flow2.json").read_text())
    assert set(metrics) == {"fd_classifier", "straightness", "eps_constancy", "step_gap",
                            "round_trip", "noise", "budget", "budget_with_ancestors",
                            "images_per_second_nfe1", "parameters", "macs", "transport",
                            "flip_error"}  # fmt: skip
    assert set(metrics["fd_classifier"]) == {"floor", "held_out", "nfe1", "nfe2", "nfe5"}
    steps, batch, n, nfe = 100, 64, 1200, 5
    assert metrics["budget"] == n * nfe + 3 * steps * batch
    assert metrics["budget_with_ancestors"] == metrics["budget"] + 3 * steps * batch
    page = (project.path / "report/index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    for part in ("floor", "held-out", "flow2", "decay: constant", "budget", "trajectory"):
        assert part in page
    curve = (project.path / "curves/loss/flow2.csv").read_text()
    assert curve.startswith("step,loss,pseudo_huber,lr,grad_norm\n")
    assert project.rfpp("pairs", "verify", PAIRS).stdout.endswith("all right\n")
    project.run("dvc", "plots", "show", "-o", str(tmp_path))
    plots = (tmp_path / "index.html").read_text()
    for part in ("distance by NFE", "first of features.nets", '"text": "loss"', '"flow": "flow2"'):
        assert part in plots


def test_nothing_runs_twice(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    assert ran(project.run("dvc", "repro").stdout) == ["source"]


@pytest.mark.long
def test_everything_can_be_killed(tmp_path, finished):
    """SIGKILL of the group in each training, in generate, and between publishing and the lock."""
    project = new_project(tmp_path / "project")

    def again(there: Callable[[], bool]) -> None:
        kill_when(project, there, "dvc", "repro", "train@flow2")

    again(lambda: bool(project.states("images")))
    assert not project.work("train/*/flow-*.safetensors")
    again(has(project, COMMITS, 3))
    kept = {path: path.stat().st_mtime_ns for path in project.work("pairs/*/pairs.zarr/commits/*")}
    assert 0 < len(kept) < 12
    again(lambda: bool(project.states("pairs")))
    assert not list(project.trainings("pairs")[0].glob("flow-*.safetensors"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # no shard was made again
    again(lambda: (project.path / MODELS[1]).exists())  # published, not yet in dvc.lock
    assert MODELS[1] not in (project.path / "dvc.lock").read_text()
    project.run("dvc", "repro", "train@flow2")
    assert results(project) == results(finished)
    for name in ("curves/loss/flow1.csv", "curves/loss/flow2.csv"):
        assert (project.path / name).read_text() == (finished.path / name).read_text()


@pytest.mark.long
def test_reference_and_evaluation_resume(tmp_path, finished):
    """Killed, they go on and end in the same bytes; what was measured is not measured again."""
    project = finished.copy(tmp_path / "project")
    outs = ("models/features.safetensors", "data/reference.npz", "curves/distance/flow2.csv")
    before = {name: (project.path / name).read_bytes() for name in outs}
    for kind in ("classifier", "features", "evaluate"):
        shutil.rmtree(project.path / ".work" / kind)
    reference = (sys.executable, "-m", "pipeline.stages.reference")
    kill_when(project, has(project, "classifier/*/state-*.json", 1), *reference)
    assert "classifier: resumes at step" in project.run(*reference).stdout
    evaluate = (sys.executable, "-m", "pipeline.stages.evaluate", "flow2")
    kill_when(project, has(project, "evaluate/*/[0-9a-f]*.json", 2), *evaluate)
    measured = {path: path.stat().st_mtime_ns for path in project.work("evaluate/*/*.json")}
    project.run(*evaluate)
    assert {name: (project.path / name).read_bytes() for name in outs} == before
    del measured[project.work("evaluate/*/identity.json")[0]]  # written by every run
    assert {path: path.stat().st_mtime_ns for path in measured} == measured

    project.set("evaluate.n=210")
    assert "classifier: finished before" in project.run(*reference).stdout
    project.set("evaluate.n=200")
    project.run(*reference)
    project.set("evaluate.nfe=[1, 2, 3]")
    there = len(project.work("evaluate/*/*.json"))
    project.run(*evaluate)
    assert len(project.work("evaluate/*/*.json")) == there + 2  # a row of two sample sets
    row = "\n3,euler,200,2,"
    assert row in (project.path / "curves/distance/flow2.csv").read_text()


@pytest.mark.long
def test_experiments_resume_the_same_work(tmp_path, pretrained, finished):
    """Killed in `dvc exp run`, taken up and killed in `--temp`, taken up by `dvc exp run`."""
    project = pretrained.copy(tmp_path / "project")
    project.run("git", "add", "-f", "dvc.lock")
    project.run("git", "commit", "-qm", "lock")
    kill_when(project, has(project, COMMITS, 2), "dvc", "exp", "run", "train@flow2")
    kept = {path: path.stat().st_mtime_ns for path in project.work(COMMITS)}
    assert 0 < len(kept) < 12
    command = ("dvc", "exp", "run", "--temp", "train@flow2")
    kill_when(project, lambda: bool(project.states("pairs")), *command)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    step = int(project.states("pairs")[-1].stem.partition("-")[2])
    done = project.run("dvc", "exp", "run", "train@flow2")
    assert f"resumes at step {step}" in done.stdout
    assert results(project) == results(finished)


@pytest.mark.long
def test_workers_and_dead_workers_do_not_matter(tmp_path, pretrained, finished, monkeypatch):
    """Two workers, one of them killed as the OOM killer does: retried, and the same pairs."""
    monkeypatch.setenv("RFPP_WORKERS", "2")
    monkeypatch.setenv("RFPP_RETRY_SECONDS", "0.1")
    project = pretrained.copy(tmp_path / "project")
    process = project.start("dvc", "repro", "generate@pairs2")
    while not has(project, COMMITS, 2)():
        assert process.poll() is None
        time.sleep(0.002)
    victims = [pid for pid, line in processes_in(project.path).items() if "spawn_main" in line]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    assert process.wait() == 0
    assert "was killed" in (tmp_path / "project.log").read_text()
    assert PairStore.open(project.path / PAIRS).digest() == results(finished)[PAIRS]


def test_a_prefect_server_that_is_not_there_is_one_line(tmp_path, pretrained, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    project = pretrained.copy(tmp_path / "project")
    done = project.stage("generate", "pairs2", ok=False)
    assert done.returncode == 2
    [line] = [x for x in done.stderr.splitlines() if x.startswith("rfpp")]
    assert "where no Prefect server answers" in line
    assert "run again" in line
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_what_changes_and_what_does_not(tmp_path, finished):
    """Comments, n, steps, other code: each reruns just what it must."""
    project = finished.copy(tmp_path / "project")
    before = results(project)

    # a comment reruns the stage, which finds its finished work
    project.edit("rfpp_core/training/losses.py", "from torch", "# a remark\nfrom torch")
    out = project.run("dvc", "repro", "train@flow1").stdout
    assert "finished before" in out
    assert results(project) == before

    # raising n keeps every finished shard
    project.set("pairs.pairs2.n=1400")
    out = project.run("dvc", "repro", "generate@pairs2").stdout
    assert "12 of 14 shards are there" in out
    assert PairStore.open(project.path / PAIRS).n == 1400
    project.set("pairs.pairs2.n=1200")
    project.run("dvc", "repro", "generate@pairs2")
    assert results(project) == before

    # raising steps at a constant rate goes on and ends where an uninterrupted run ends
    project.set("recipes.pretrain.steps=140")
    out = project.run("dvc", "repro", "train@flow1").stdout
    assert "resumes at step 100" in out
    longer = files.sha256(project.path / MODELS[0])
    shutil.rmtree(project.trainings("images")[0])
    shutil.rmtree(project.path / ".dvc" / "cache")
    (project.path / MODELS[0]).unlink()
    out = project.run("dvc", "repro", "-f", "-s", "prepare", "network@unet", "train@flow1").stdout
    assert "resumes" not in out
    assert files.sha256(project.path / MODELS[0]) == longer

    listed = project.rfpp("work", "list").stdout
    assert "14 shards (1400 pairs)" in listed
    assert "finished at 140 steps" in listed

    # code that trains otherwise retrains, and adopt takes harmless changes over
    project.edit("rfpp_core/training/losses.py", ".mean(1)", ".mean(1) * 1.0")
    staged = project.trainings("images")[0].name
    project.rfpp("work", "adopt", f"train/{staged}", "--why", "times one")
    project.run("dvc", "repro", "-s", "train@flow1")
    from rfpp_core.storage.checkpoint import load

    adopted = load(project.path / MODELS[0]).metadata["provenance"]["adopted"]
    assert adopted == [{"modules": ["rfpp_core.training.losses"], "why": "times one"}]
    project.edit("rfpp_core/training/losses.py", ".mean(1) * 1.0", ".mean(1) * 2.0")
    out = project.run("dvc", "repro", "-s", "train@flow1").stdout
    assert "finished before" not in out
    assert files.sha256(project.path / MODELS[0]) != longer


def test_the_witness_refuses_through_dvc(tmp_path, finished):
    project = finished.copy(tmp_path / "project")
    project.edit("rfpp_core/images/pixels.py", "127.5 + 128", "127.5 + 127")
    shutil.rmtree(project.path / ".dvc" / "cache" / "runs")
    done = project.run("dvc", "repro", "-s", "generate@pairs2", ok=False)
    assert done.returncode != 0
    assert "the code now makes other images" in done.stdout + done.stderr
    assert "rfpp work clean pairs/" in done.stdout + done.stderr


@pytest.mark.long
def test_going_back_restores_from_the_run_cache(tmp_path, finished):
    project = finished.copy(tmp_path / "project")
    before = results(project)
    project.set("evaluate.seeds=1")
    project.run("dvc", "repro", "evaluate@flow2")
    project.set("evaluate.seeds=2")
    out = project.run("dvc", "repro", "evaluate@flow2").stdout
    assert "Stage 'evaluate@flow2' is cached - skipping run, checking out outputs" in out
    assert results(project) == before


@pytest.mark.long
def test_a_third_round_is_two_rows(tmp_path, finished):
    project = finished.copy(tmp_path / "project")
    project.set(
        "pairs.pairs3={teacher: flow2, n: 600, shard: 100, micro_batch: 50, solver: heun, nfe: 5}",
        "flows.flow3={recipe: reflow, data: pairs3, mix: images, start: flow2}",
    )
    out = project.run("dvc", "repro").stdout
    assert "Stage 'train@flow2' didn't change, skipping" in out
    for name in ("models/flow3.safetensors", "metrics/flow3.json", "report/flow3/nfe1.png"):
        assert (project.path / name).exists()


@pytest.mark.long
def test_conditional_with_guidance(tmp_path):
    project = new_project(tmp_path / "project")
    project.set("networks.unet.conditional=true", "recipes.pretrain.label_dropout=0.2",
                "pairs.pairs2.guidance=1.5", "pairs.pairs2.n=400",
                "evaluate.straightness_n=5")  # fmt: skip
    project.run("dvc", "repro", "evaluate@flow2")
    store = PairStore.open(project.path / PAIRS)
    assert (store.spec.classes, store.spec.guidance) == (10, 1.5)
    metrics = json.loads((project.path / "metrics/flow2.json").read_text())
    assert metrics["budget"] == 400 * 5 * 2 + 3 * 100 * 64  # two evaluations a guided call
    assert set(metrics["agreement"]) == {"nfe1", "nfe2", "nfe5"}
    assert 0 <= metrics["agreement"]["nfe1"] <= 1
    out = project.path / "three.png"
    project.rfpp("sample", "--label", "3", "--n", "4", "--out", str(out))
    assert out.exists()
    done = project.rfpp("sample", "--label", "10", ok=False)
    assert (done.returncode, done.stderr) == (2, "rfpp: label 10 is out of range 0..9\n")


@pytest.mark.long
def test_config_g(tmp_path, finished):
    """flow2 fine-tuned on real images that flow1 inverted, also with its own pairs mixed in."""
    project = finished.copy(tmp_path / "project")
    project.set(
        "recipes.finetune={steps: 20, batch: 64, lr: 3.0e-4, warmup: 0, decay: constant,"
        " ema: 0.99, ema_ramp: false, log_every: 10, mix: 0.0}",
        "pairs.inverted={teacher: flow1, source: images, shard: 500, micro_batch: 250,"
        " solver: heun, nfe: 8}",
        "flows.flow3={recipe: finetune, data: inverted, mix: pairs2, start: flow2}",
    )
    project.run("dvc", "repro")
    assert project.rfpp("pairs", "verify", "data/inverted.zarr").stdout.endswith("all right\n")
    metrics = json.loads((project.path / "metrics/flow3.json").read_text())
    assert metrics["budget"] == 1438 * 8 + 3 * 20 * 64
    assert "flow3" in (project.path / "report/index.html").read_text()
    pure = (project.path / "models/flow3.safetensors").read_bytes()
    project.set("recipes.finetune.mix=0.5")
    project.run("dvc", "repro", "train@flow3")
    assert (project.path / "models/flow3.safetensors").read_bytes() != pure
    assert results(project) == results(finished)


@pytest.mark.long
def test_without_labels(tmp_path, finished):
    """Other feature nets than the classifier: reference, evaluation and report know them."""
    project = finished.copy(tmp_path / "project")
    project.edit("params.yaml", "nets: [classifier]", "nets: [pixels]")
    for command in (["reference"], ["evaluate", "flow1"], ["evaluate", "flow2"], ["report"]):
        project.stage(*command)
    metrics = json.loads((project.path / "metrics/flow2.json").read_text())
    assert "fd_pixels" in metrics
    assert "fd_classifier" not in metrics
    page = (project.path / "report/index.html").read_text()
    assert "A last resort" in page
    assert "fd_classifier" not in page.partition("<h2>Params")[0]
