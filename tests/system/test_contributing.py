"""The example of CONTRIBUTING.md, applied to a copy of the project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, Project

BLOCK = re.compile(r"^```(python|diff) (\S+)\n(.*?)^```$", re.M | re.S)
IDENTITIES = """
import json
from pipeline.cli import presets
from pipeline.work import training_job
from rfpp_core.config import build, params, yaml_file

found = {}
for name in presets.names():
    config = params.parse(yaml_file.parse(presets.composed(name), name))
    for flow, row in config.flows.items():
        recipe, network = config.recipe_of(flow), config.network_of(flow)
        arch = build.architecture_of(build.architecture(network, (3, 64, 64), 10))
        for coupling in ("independent", "seeded", "stored"):
            code = training_job.code_of(recipe, arch, [coupling])
            found[f"{name} {flow} {coupling}"] = [recipe.identity, code]
print(json.dumps(found, sort_keys=True))
"""


def blocks() -> list[tuple[str, str, str]]:
    return BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())


def apply(folder: Path) -> set[str]:
    """Writes the new files and makes the edits; which files it touches."""
    touched = set()
    for kind, name, body in blocks():
        file = folder / name
        touched.add(name)
        if kind == "python":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
            continue
        lines = body.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        text = file.read_text()
        assert text.count(old) == 1, (name, old)
        file.write_text(text.replace(old, new))
    return touched


def identities(project: Project) -> dict:
    return json.loads(project.run(sys.executable, "-c", IDENTITIES).stdout)


@pytest.mark.slow
@pytest.mark.long
def test_a_new_coupling_is_four_files_and_a_page_and_changes_no_identity(pretrained, tmp_path):
    project = pretrained.copy(tmp_path / "project")
    before = identities(project)
    assert len(before) > 30
    touched = apply(project.path)
    assert len(touched) <= 4  # and a page of documentation
    assert not {name for name in touched if name.startswith(("pipeline/", "presets/", "dvc"))}
    assert identities(project) == before

    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                    "tests/unit/training/test_antithetic.py"],
                   cwd=project.path, env=project.env, check=True)  # fmt: skip
    assert "finished before" in project.stage("train", "flow1").stdout
    weights = (project.path / "models/flow1.safetensors").read_bytes()
    project.edit("params.yaml", "coupling: independent", "coupling: antithetic")
    assert "100 steps in" in project.stage("train", "flow1").stdout
    assert (project.path / "models/flow1.safetensors").read_bytes() != weights
