"""What the documentation shows of drawing, editing, exporting and pairs runs as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from pipeline.cli.main import app
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint
from tests.helpers import save_tiny, spec_for
from tests.unit.docs.markdown import PAGES, blocks, commands

EXPORTING = "docs/howto/exporting.md"
PYTHON = [(page, i, block) for page in sorted(PAGES) if page.startswith("docs/")
          for i, block in enumerate(b for b in blocks(page) if b.language == "python")
          if page != EXPORTING]  # fmt: skip
RUN = "sample|invert|interpolate|translate|transfer|export|pairs verify|pairs digest"
SHELL = sorted({(page, command) for page in PAGES for block in blocks(page)
                if block.language in ("sh", "") for command in commands(block)
                if re.match(f"rfpp ({RUN}) ", command)})  # fmt: skip
EXPORTS = [command for page, command in SHELL if page == EXPORTING]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder with what a run leaves: models, pairs; and images to edit."""
    home = tmp_path_factory.mktemp("run")
    for name in ("flow1", "flow2"):
        save_tiny(home / f"models/{name}.safetensors")
    save_tiny(home / "conditional.safetensors", classes=10, attention=1)
    found = checkpoint.load(save_tiny(home / "between.safetensors"))
    domains = {"source": [0], "target": [1]}
    checkpoint.save(home / "between.safetensors", found.tensors,
                    {**found.metadata, "domains": domains})  # fmt: skip
    spec = spec_for(shard=100, micro_batch=50)
    (home / "data").mkdir()
    store = PairStore.create(home / "data/pairs2.zarr", spec, 100)
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    z = spec.z(spec.index(0, 1)).numpy()[0]
    store.commit(0, Pairs(images, np.full(100, -1, np.int16), None), z)
    (home / "pictures").mkdir()
    for name in ("a.png", "b.png", "pictures/c.png"):
        Image.fromarray(images[ord(name[-5]) % 100, 0]).save(home / name)
    return home


@pytest.fixture
def here(results, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(results, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("page", "i", "block"), PYTHON, ids=[f"{p}-{i}" for p, i, _ in PYTHON])
def test_python_blocks_run(here, page, i, block):
    exec(compile(block.text, page, "exec"), {})


def type_in(command: str) -> None:
    """What a command line does."""
    words = shlex.split(command, comments=True)[1:]
    typer.main.get_command(app)(words, standalone_mode=False)


@pytest.mark.parametrize(("page", "command"), [row for row in SHELL if row[1] not in EXPORTS])
def test_commands_run(here, page, command):
    command, _, _ = command.partition("#")
    if "translate" in command:  # of a conditional flow with attention
        command += " --model conditional.safetensors"
    if "transfer " in command:  # of a flow between two sets of images
        command += " --model between.safetensors"
    type_in(command.replace("10000", "100"))
    if out := re.search(r"--out (\S+)", command):
        assert (here / out[1]).exists()


def test_exported_generators_run_as_shown(here):
    for command in EXPORTS:
        type_in(command)
    shown = [block for block in blocks(EXPORTING) if block.language == "python"]
    assert len(shown) == len(EXPORTS) == 2
    for block in shown:
        found: dict = {}
        exec(compile(block.text, EXPORTING, "exec"), found)
        assert found["images"].shape == (16, 1, 8, 8)


def test_blocks_and_commands_are_found():
    assert len(PYTHON) > 4
    assert len(SHELL) > 8
