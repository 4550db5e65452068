"""Names of rows are the user's: they are in no identity, so a new name computes nothing twice."""

from __future__ import annotations

import json

import pytest

from rfpp_core.storage import files
from tests.helpers import Project

pytestmark = [pytest.mark.slow, pytest.mark.long]
NAMES = {"flow1": "teacher", "flow2": "straight", "pairs2": "made", "unet": "small",
         "reflow": "second"}  # fmt: skip


def staged(project: Project) -> dict[str, int]:
    """All that is computed and staged, by when it was written; identity.json is rewritten by
    every run."""
    kinds = ("classifier", "features", "train", "pairs", "evaluate")
    found = [path for kind in kinds for path in project.work(f"{kind}/**/*") if path.is_file()]
    return {str(path.relative_to(project.path)): path.stat().st_mtime_ns for path in found
            if path.name != "identity.json" and path.suffix != ".lock"}  # fmt: skip


def content(project: Project, name: str) -> object:
    """A file's bytes as a digest; of metrics, all but the speed, which is that of the moment."""
    path = project.path / name
    if path.suffix != ".json":
        return files.sha256(path)
    return {**json.loads(path.read_text()), "images_per_second_nfe1": None}


OUTS = ("models/{}.safetensors", "curves/loss/{}.csv", "curves/distance/{}.csv", "metrics/{}.json",
        "samples/{}/nfe1.png", "samples/{}/trajectory.png")  # fmt: skip


def same_rows(project: Project, rows: dict[str, str]) -> None:
    """The outs of flows are those of other flows, to the byte."""
    for old, new in rows.items():
        for out in OUTS:
            assert content(project, out.format(new)) == content(project, out.format(old)), out


def test_renamed_rows_compute_nothing_twice(tmp_path, finished):
    """Networks, recipes, pairs and flows, all at once: the stages run and find their work."""
    project = finished.copy(tmp_path / "project")
    before = staged(project)
    for old, new in NAMES.items():
        project.rename(old, new)
    out = project.run("dvc", "repro").stdout
    assert "teacher: finished before" in out
    assert "straight: finished before" in out
    assert "12 of 12 shards" in out
    assert "shards made" not in out
    assert staged(project) == before
    same_rows(project, {"flow1": "teacher", "flow2": "straight"})
    page = (project.path / "report/index.html").read_text().partition("<h2>Params")[0]
    assert "straight" in page
    assert "flow2" not in page


def test_a_second_row_that_says_the_same_computes_nothing(tmp_path, finished):
    """Of every section; and it is measured by finding what was measured."""
    project = finished.copy(tmp_path / "project")
    before = staged(project)
    project.set(
        "networks.again={arch: small_unet, channels: 16, multipliers: [1, 2], precond: velocity,"
        " conditional: false}",
        "recipes.same={steps: 100, batch: 64, lr: 0.002, loss: {name: pseudo_huber}, warmup: 10,"
        " times: {at_one: 0.9}, decay: constant, ema: 0.9, threads: 1, log_every: 10}",
        "pairs.twin={teacher: other1, n: 1200, solver: heun, nfe: 5, shard: 100, micro_batch: 50}",
        "flows.other1={recipe: pretrain, data: images, mix: images, start: again, many_seeds: 2}",
        "flows.other2={recipe: same, data: twin, mix: pairs2, start: flow1}",
    )
    out = project.run("dvc", "repro").stdout
    assert "other1: finished before" in out
    assert "other2: finished before" in out
    assert "12 of 12 shards" in out
    assert staged(project) == before
    same_rows(project, {"flow1": "other1", "flow2": "other2"})


def test_no_identity_holds_a_name(finished):
    """Nor does a measurement; `pretrain` and `reflow` are what streams of random numbers are
    called, whatever the recipe's name."""
    found = [*finished.work("*/*/identity.json"), *finished.work("evaluate/*/*.json")]
    assert len(found) > 7
    for path in found:
        for name in ("flow1", "flow2", "pairs2", '"unet"'):
            assert name not in path.read_text()
