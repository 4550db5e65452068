"""dvc.yaml against the import graph: a change that matters reruns a stage, others do not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

FACADE = ROOT / "rfpp_core" / "__init__.py"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Rooms that a stage imports but whose change must not run it again: they carry params, errors and
# files, or belong to other stages; trainings and pairs find their finished work by identity.
PLUMBING = {
    "rfpp_core/__init__.py", "rfpp_core/params.py", "rfpp_core/build.py", "rfpp_core/errors.py",
    "rfpp_core/files.py", "rfpp_core/checkpoint.py", "rfpp_core/runtime.py",
    "rfpp_core/weights.py", "rfpp_core/distributed.py", "rfpp_core/shelf.py",
    "rfpp_core/optimizer.py", "rfpp_core/yaml_file.py", "pipeline/processes.py",
    "pipeline/console.py",
    "pipeline/__init__.py", "pipeline/stage.py", "pipeline/devices.py", "pipeline/shard_flow.py",
    "pipeline/source.py",
}  # fmt: skip
TRAINS = {"rfpp_core/couplings.py", "rfpp_core/loader.py", "rfpp_core/losses.py",
          "rfpp_core/timesteps.py", "rfpp_core/trainer.py", "rfpp_core/ema.py"}  # fmt: skip
SAMPLES = {"rfpp_core/sampling.py", "rfpp_core/solvers.py", "rfpp_core/schedules.py"}
FIELDS = {"rfpp_core/flow.py", "rfpp_core/precond.py", "rfpp_core/nets"}
STORE = {"rfpp_core/markers.py", "rfpp_core/zarr_io.py"}  # as a reader
# Trainings, pairs and evaluations depend on the core as a whole, and on these of the pipeline.
PIPELINE = {
    "pretrain": {"pretrain", "training", "perceptual_net", "code"},
    "reflow": {"reflow", "training", "perceptual_net", "code"},
    "finetune": {"finetune", "invert", "reflow", "training", "perceptual_net", "code"},
    "generate": {"generate", "shards"},
    "invert": {"generate", "invert", "shards"},
    "evaluate-flow1": {"code", "evaluate", "reference", "results"},
    "evaluate": {"code", "evaluate", "reference", "results"},
    "evaluate-finetuned": {"code", "evaluate", "reference", "results"},
}
NOT_FOR = {
    "prepare": set(),
    "reference": STORE | {"rfpp_core/flow.py", "rfpp_core/solvers.py", "rfpp_core/couplings.py"},
    "report": FIELDS
    | SAMPLES
    | TRAINS - {"rfpp_core/timesteps.py"}
    | STORE
    | {"rfpp_core/noise.py", "rfpp_core/data.py", "rfpp_core/pixels.py"},
}


for name in set(NOT_FOR) - {"prepare"}:  # that alone reads the images' files
    NOT_FOR[name] |= {"rfpp_core/sources.py", "rfpp_core/listing.py", "rfpp_core/labels.py",
                      "rfpp_core/decode.py"}  # fmt: skip


def imports(path: Path) -> set[Path]:
    """Project files that a file imports, at the top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        for name in names:
            base = ROOT / name.replace(".", "/")
            for file in (base.with_suffix(".py"), base / "__init__.py"):
                if file == FACADE:  # loads on first use, and no stage uses it
                    continue
                if name.startswith(("rfpp_core", "pipeline")) and file.exists():
                    found.add(file)
    return found


def closure(module: Path) -> set[str]:
    seen, queue = set(), [module]
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue += imports(path)
    names = {str(path.relative_to(ROOT)) for path in seen}
    return {"rfpp_core/nets" if name.startswith("rfpp_core/nets/") else name for name in names}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_rooms_a_stage_really_uses(name):
    stage = STAGES[name].get("do", STAGES[name])
    module = stage["cmd"].split()[2]
    deps = {dep for dep in stage.get("deps", ()) if dep.startswith(("rfpp_core", "pipeline"))}
    file = module.replace(".", "/") + ".py"
    if name in ("preflight", "source"):  # the first makes nothing, the second always runs
        assert deps == ({file} if name == "preflight" else set())
        return
    used = closure(ROOT / file)
    if name in PIPELINE:
        named = {f"pipeline/{module}.py" for module in PIPELINE[name]}
        assert deps == {"rfpp_core", *named}
        assert named <= used | {"pipeline/shards.py"}  # which workers import by name
        return
    assert deps == used - PLUMBING - NOT_FOR[name]


@pytest.mark.parametrize("name", STAGES)
def test_deps_exist_and_results_are_ignored_by_git(name):
    stage = STAGES[name].get("do", STAGES[name])
    for dep in stage.get("deps", ()):
        if dep.startswith(("rfpp_core", "pipeline")):
            assert (ROOT / dep).exists()
    ignored = (ROOT / ".gitignore").read_text()
    for out in stage["outs"]:
        assert f"/{out.split('/')[0]}/" in ignored


def test_no_stage_persists_its_outs():
    assert "persist" not in (ROOT / "dvc.yaml").read_text()


def test_params_of_stages_are_sections_of_the_schema():
    from rfpp_core.config.params import Params

    for stage in STAGES.values():
        for section in stage.get("do", stage)["params"]:
            assert section.split(".")[0] in Params.model_fields
