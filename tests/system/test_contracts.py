"""dvc.yaml against the import graph: a change that matters reruns a stage, others do not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

FACADE = ROOT / "rfpp_core" / "__init__.py"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# What a stage imports but whose change must not run it again: errors, processes, the terminal, and
# the params' schema.  Trainings, pairs and evaluations find their finished work by identity.
PLUMBING = {"rfpp_core", "rfpp_core/errors", "rfpp_core/runtime", "rfpp_core/choices",
            "pipeline", "pipeline/artifacts", "pipeline/console",
            "pipeline/settings", "pipeline/stage_log", "pipeline/stages"}  # fmt: skip
# Packages that a stage imports for little of them, with why.
NOT_FOR = {
    "prepare": {"rfpp_core/config", "rfpp_core/sampling", "rfpp_core/model"},  # the schema alone
    "reference": {
        "rfpp_core/config",  # the schema alone
        "rfpp_core/sampling", "rfpp_core/model",  # straightness lies beside distances
        "rfpp_core/pairs", "rfpp_core/training", "pipeline/workers",  # siblings in work
    },
    "network": {"rfpp_core/training", "rfpp_core/sampling", "rfpp_core/images", "rfpp_core/pairs",
                "pipeline/work"},  # of the builder of networks and what lies beside it
    "generate": {"rfpp_core/training", "rfpp_core/evaluation"},  # of other jobs in work
    "train": {"rfpp_core/sampling", "rfpp_core/evaluation", "pipeline/workers",
              "rfpp_core/interop"},  # the file of VGG16, which an identity knows by its digest
    "evaluate": {"rfpp_core/training", "rfpp_core/pairs"},
    "report": {"rfpp_core/config", "rfpp_core/rng", "rfpp_core/images", "rfpp_core/model",
               "rfpp_core/pairs",
               "rfpp_core/sampling", "rfpp_core/storage"},  # read of files alone
}  # fmt: skip


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


def packages_of(module: Path) -> set[str]:
    """The packages (and modules beside them) that a module reaches by imports."""
    seen, queue = set(), [module]
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue += imports(path)
            if path.name == "pair_job.py":  # which names its tasks to the workers
                queue.append(ROOT / "pipeline/workers/tasks.py")
    parts = (path.relative_to(ROOT).with_suffix("").parts[:2] for path in seen)
    return {"/".join(p).removesuffix("/__init__") for p in parts}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_packages_a_stage_really_uses(name):
    stage = STAGES[name].get("do", STAGES[name])
    module = stage["cmd"].split()[2]
    deps = {dep for dep in stage.get("deps", ()) if dep.startswith(("rfpp_core", "pipeline"))}
    file = module.replace(".", "/") + ".py"
    if name in ("preflight", "source"):  # the first makes nothing, the second always runs
        assert deps == ({file} if name == "preflight" else set())
        return
    assert file in deps
    assert deps - {file} == packages_of(ROOT / file) - PLUMBING - NOT_FOR[name]


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


def test_dvc_yaml_is_short_and_depends_on_packages():
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) <= 120
    for stage in STAGES.values():
        for dep in stage.get("do", stage).get("deps", ()):
            if dep.endswith(".py"):  # the stage's own alone
                assert dep == stage.get("do", stage)["cmd"].split()[2].replace(".", "/") + ".py"


def test_params_of_stages_are_sections_of_the_schema():
    from rfpp_core.config.params import Params

    for stage in STAGES.values():
        for section in stage.get("do", stage)["params"]:
            assert section.split(".")[0] in Params.model_fields


def test_every_package_says_what_it_is_for():
    for package in [*ROOT.glob("rfpp_core/**/__init__.py"), *ROOT.glob("pipeline/**/__init__.py")]:
        assert ast.get_docstring(ast.parse(package.read_text())), package


def test_no_file_has_more_than_350_lines():
    for path in [*ROOT.glob("rfpp_core/**/*.py"), *ROOT.glob("pipeline/**/*.py")]:
        assert len(path.read_text().splitlines()) <= 350, path
