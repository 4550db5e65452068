"""What people see of a stage: one line and an exit code where it cannot go on."""

import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from pipeline import artifacts, console
from rfpp_core.errors import Corrupted
from tests.helpers import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_the_root_is_found_from_dvc_or_from_dot_dvc(here, monkeypatch):
    below = here / ".dvc" / "tmp" / "exps" / "tmp1"
    (below / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(below)
    assert artifacts.root() == below
    monkeypatch.setenv("DVC_ROOT", str(here))  # as in `dvc exp run --temp`
    assert artifacts.root() == here
    monkeypatch.setenv("DVC_ROOT", str(here / "elsewhere"))
    assert artifacts.root() == below


@pytest.mark.parametrize("module", ["network", "generate", "train", "evaluate"])
def test_a_missing_argument_is_one_line(module):
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.stages.{module}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rfpp: usage: python -m pipeline.stages.")


def full_by_the_system():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/x")


def full_by_a_library():
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error)")


@pytest.mark.parametrize("run", [full_by_the_system, full_by_a_library])
def test_a_full_disk_is_one_line(here, monkeypatch, capsys, run):
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        console.main(run)
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "No space left on device" in line
    assert "run the same command again" in line


def test_a_damaged_file_loses_the_trust_of_dvc(here, monkeypatch):
    """DVC takes a read-only file for the one it linked from its cache."""
    (here / "model").write_text("damaged")
    (here / "model").chmod(0o444)

    def run():
        raise Corrupted("model is damaged", here / "model", here / "not there")

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit):
        console.main(run)
    assert (here / "model").stat().st_mode & 0o200


def test_an_interrupt_after_the_work_does_not_deny_it(here):
    """While the interpreter shuts down."""
    code = (
        "import atexit, os, signal, sys\n"
        "from pipeline import console\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.argv = ['stage']\n"
        "console.main(lambda: print('done'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_other_errors_are_not_hidden(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        console.main(lambda: 1 / 0)
