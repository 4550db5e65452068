"""What people see of a stage: one line and an exit code where it cannot go on."""

import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from pipeline import artifacts, console
from rfpp_core.errors import Corrupted, Several, UserError
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


def others(code: int, *names: str):
    """What the system refuses, as Python raises it."""

    def run():
        raise OSError(code, os.strerror(code), *names)

    return run


def others_by_a_library():
    raise SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)")


@pytest.mark.parametrize(("run", "line"), [
    (others(errno.EACCES, "models/x"), "models/x cannot be used: Permission denied"),
    (others(errno.EACCES, "models/.x.safetensors.123.partial"),
     "models/x.safetensors cannot be used: Permission denied"),
    (others(errno.EROFS, ".work"), ".work cannot be used: Read-only file system"),
    (others(errno.EEXIST, "dvc.yaml"), "dvc.yaml cannot be used: Not a directory"),
    (others(errno.EEXIST, ".dvc"), ".dvc cannot be used: File exists"),
    (others(errno.ENOENT, "a\x1b[2J\u202e"),
     r"a\x1b[2J\u202e cannot be used: No such file or directory"),
    (others(errno.EMFILE), "OSError: [Errno 24] Too many open files"),
    (others_by_a_library, "SafetensorError: Error while serializing: I/O error: Permission denied "
                          "(os error 13)"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_line(here, monkeypatch, capsys, run, line):
    """A models/ that is not writable, a .work of another user."""
    (here / "dvc.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        console.main(run)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"rfpp: {line}\n")


def test_of_a_rename_the_target_is_named():
    error = IsADirectoryError(21, "Is a directory", ".x.png.1.partial", None, "x.png")
    assert console.refusal(error) == "x.png cannot be used: Is a directory"
    assert console.refusal(RuntimeError("a mistake")) is None


def test_a_work_directory_that_is_none_is_one_line(here, monkeypatch, capsys):
    (here / ".work").write_text("")
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        console.main(lambda: None)
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.endswith(".work cannot be used: Not a directory")


def test_several_mistakes_are_a_line_each_and_names_in_them_break_none(here, monkeypatch, capsys):
    def run():
        raise Several("2 things are missing:", ["a\n  2. nothing", "b\x1b[2J\u202e"])

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit):
        console.main(run)
    assert capsys.readouterr().err == (
        "rfpp: 2 things are missing:\n"
        r"  1. a\n  2. nothing" "\n"
        r"  2. b\x1b[2J\u202e" "\n"
    )  # fmt: skip


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x1b[2Jb", "a\u202eb", "a\x85b", "a\u2028b"])
def test_no_line_of_an_error_acts_on_the_terminal(here, monkeypatch, capsys, text):
    def run():
        console.warn(text)
        raise UserError(text)

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit):
        console.main(run)
    lines = capsys.readouterr().err[:-1].split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert console.one_line(ValueError(text)).isprintable()


def test_a_launcher_gets_the_line_as_it_would_be_printed(here, monkeypatch):
    def run():
        raise UserError("a\x1b[2J\nb")

    monkeypatch.setenv("RFPP_ERRORS", str(here))
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit):
        console.main(run)
    [file] = here.glob("0*-2")
    assert file.read_text() == r"rfpp: a\x1b[2J\nb" + "\n"


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
