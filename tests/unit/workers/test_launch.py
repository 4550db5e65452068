"""The launcher of a training's processes: what it says, and that it leaves none behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline import artifacts, console
from tests.helpers import ROOT, processes_in


def start(home, mode):
    env = {**os.environ, "RFPP_PROCESSES": "2", "PYTHONPATH": str(ROOT), "TMPDIR": str(home),
           "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "tests.ranks", mode], cwd=home, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


def ends(home, running, number=None, group=False):
    """Exit code and lines of error, after a signal once both ranks run."""
    if number is not None:
        assert sorted(running.stdout.readline() for _ in range(2)) == ["rank 0\n", "rank 1\n"]
        (os.killpg if group else os.kill)(running.pid, number)
    errors = running.communicate(timeout=60)[1].splitlines()
    while processes_in(home):  # a killed launcher's end a moment after it
        time.sleep(0.01)
    return running.returncode, errors


@pytest.mark.parametrize(("mode", "code", "line"), [
    ("works", 0, None),
    ("refuses", 2, "rfpp: no room on this machine"),
    ("dies", 2, "rfpp: a training process was killed (SIGKILL); run the same command again to "
                "resume"),
    ("leaves", 2, "rfpp: a training process ended with exit code 7; run the same command again to "
                  "resume"),
])  # fmt: skip
def test_what_failed_first_is_one_line(tmp_path, mode, code, line):
    assert ends(tmp_path, start(tmp_path, mode)) == (code, [line] if line else [])
    assert not list(tmp_path.glob("rfpp-*"))  # no file of errors is left


def test_a_mistake_in_the_code_is_one_traceback(tmp_path):
    code, errors = ends(tmp_path, start(tmp_path, "breaks"))
    assert code == 1
    assert errors[0] == "Traceback (most recent call last):"
    assert errors[-1] == "RuntimeError: a mistake"
    assert len([line for line in errors if line.startswith("Traceback")]) == 1


def test_under_torchrun_the_loss_of_another_process_is_one_line(monkeypatch, capsys):
    """Each speaks for itself there; only the first cause may be a traceback."""

    def fails():
        raise RuntimeError("[gloo/pair.cc:561] Connection closed by peer\nmore")

    monkeypatch.setattr(artifacts, "library_caches", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        console.main(fails)
    assert left.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("rfpp: another process of this training is gone and says why (Runtime")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match="gloo"):
        console.main(fails)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize(("number", "code", "lines"), [
    (signal.SIGINT, 130, ["rfpp: interrupted; run the same command again to resume"]),
    (signal.SIGTERM, None, []),
    (signal.SIGKILL, -9, []),
])  # fmt: skip
def test_signals_to_the_launcher_end_all(tmp_path, number, code, lines, group):
    found, errors = ends(tmp_path, start(tmp_path, "waits"), number, group)
    assert errors == lines
    assert found in ((143, -15) if code is None else (code,))
