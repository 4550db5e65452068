import errno
import os
import subprocess
import sys
import time

import pytest
from safetensors import SafetensorError

from pipeline.work import workdir
from rfpp_core.errors import Corrupted, UserError
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
    assert workdir.root() == below
    monkeypatch.setenv("DVC_ROOT", str(here))  # as in `dvc exp run --temp`
    assert workdir.root() == here
    monkeypatch.setenv("DVC_ROOT", str(here / "elsewhere"))
    assert workdir.root() == below


def test_a_changed_identity_is_not_published():
    workdir.confirm({"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(UserError, match=r"changed during the run \(b; identity"):
        workdir.confirm({"a": 1, "b": 2}, {"a": 1, "b": 3})


def test_numbers_from_the_environment(monkeypatch):
    assert workdir.env_number("RFPP_RETRIES", 3) == 3
    monkeypatch.setenv("RFPP_RETRIES", "5")
    assert workdir.env_number("RFPP_RETRIES", 3) == 5
    monkeypatch.setenv("RFPP_RETRIES", "")
    assert workdir.env_number("RFPP_RETRIES", 3) == 3


@pytest.mark.parametrize("name", [*workdir.NUMBERS, "RFPP_DEVICE"])
@pytest.mark.parametrize("wrong", ["many", "-1", "nan", "inf", "1e400", "²", "a\x1b[31m\nb" * 999])
def test_wrong_settings_are_refused_by_every_stage(monkeypatch, name, wrong):
    monkeypatch.setenv(name, wrong)
    with pytest.raises(UserError, match=f"^{name} is ") as error:
        workdir.check_environment()
    line = str(error.value)
    assert line.isprintable()
    assert repr(wrong)[:8] in line
    assert "cuda:<index>" in line if name == "RFPP_DEVICE" else "number from" in line


@pytest.mark.parametrize(("name", "wrong"), [("RETRIES", "2.5"), ("WORKERS", "0"),
                                             ("THREADS", "0"), ("PROCESSES", "1e9")])  # fmt: skip
def test_whole_numbers_and_their_limits(monkeypatch, name, wrong):
    monkeypatch.setenv(f"RFPP_{name}", wrong)
    with pytest.raises(UserError, match=f"is '{wrong}'; it must be a whole number from"):
        workdir.check_environment()


HOLD = (
    "from pipeline import stage\n"
    "with workdir.staging('x', {'a': 1}):\n"
    "    print('in', flush=True); input()\n"
)


def hold() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_a_busy_identity_waits_and_names_the_holder(here):
    holder = hold()
    assert holder.stdout.readline() == "in\n"
    waiter = hold()
    assert f"busy in process {holder.pid}" in waiter.stderr.readline()
    assert waiter.poll() is None
    holder.communicate("\n")
    assert waiter.communicate("\n")[0] == "in\n"


def test_a_killed_holder_frees_its_lock(here):
    holder = hold()
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with workdir.staging("x", {"a": 1}):
        assert time.monotonic() - start < 5


def test_publishing_replaces_whole_files(tmp_path):
    source, target = tmp_path / "a", tmp_path / "out" / "b"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    workdir.publish(source, target)
    assert target.read_text() == "new"
    assert source.exists()
    assert [path.name for path in target.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("module", ["generate", "reflow", "evaluate"])
def test_a_missing_argument_is_one_line(module):
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{module}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rfpp: usage: python -m pipeline.")


def full_by_the_system():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/x")


def full_by_a_library():
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error)")


@pytest.mark.parametrize("run", [full_by_the_system, full_by_a_library])
def test_a_full_disk_is_one_line(here, monkeypatch, capsys, run):
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        workdir.main(run)
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
        workdir.main(run)
    assert (here / "model").stat().st_mode & 0o200


def test_an_interrupt_after_the_work_does_not_deny_it(here):
    """While the interpreter shuts down."""
    code = (
        "import atexit, os, signal, sys\n"
        "from pipeline import stage\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.argv = ['stage']\n"
        "stage.main(lambda: print('done'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_other_errors_are_not_hidden(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        workdir.main(lambda: 1 / 0)


def test_what_a_killed_run_left_half_written_is_cleared_away(here):
    with workdir.staging("pairs", {"a": 1}) as work:
        (work.path / "commits").mkdir()
        left = [work.path / ".state.9.partial", work.path / "commits/.000001.json.9.partial"]
        for path in left:
            path.write_text("half")
        (work.path / "state").write_text("whole")
    with workdir.staging("pairs", {"a": 1}) as work:
        assert not any(path.exists() for path in left)
        assert (work.path / "state").read_text() == "whole"
    link = here / "models" / ".flow.9.partial"
    link.parent.mkdir()
    link.write_text("half")
    workdir.publish(work.path / "state", here / "models" / "flow")
    assert [path.name for path in link.parent.iterdir()] == ["flow"]
