"""What tests of the command line share: models, pairs and images, and commands run here."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pipeline.cli import main
from rfpp_core.config import build
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint
from tests.helpers import SMOKE, save_tiny, spec_for, tiny_arch


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs ``main`` in this process as a command with arguments in a directory."""

    def run(main, *args, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return Done(code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def rfpp(call):
    return lambda *args, cwd: call(main.entry, *args, cwd=cwd)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    save_tiny(path / "flow.safetensors")
    (path / "dvc.yaml").touch()
    (path / "smoke.yaml").write_text(SMOKE)
    tensors = build.field(tiny_arch()).state_dict()
    tensors["model.stem.weight"] = torch.zeros(2, 2)
    checkpoint.save(path / "wrong.safetensors", tensors, {"architecture": tiny_arch()})
    (path / "junk.safetensors").write_bytes(b"junk" * 100)
    store = PairStore.create(path / "pairs.zarr", spec_for(), 40)
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    for k in (0, 1):
        store.commit(k, Pairs(images, np.full(20, -1, np.int16), None))
    return path


@pytest.fixture(scope="module")
def pictures(here):
    from PIL import Image

    folder = here / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    save_tiny(here / "conditional.safetensors", classes=10)
    return folder


@pytest.fixture(scope="module")
def labelled(here):
    return save_tiny(here / "labelled.safetensors", classes=3)
