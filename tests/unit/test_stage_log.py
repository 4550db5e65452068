"""The log of stage times: a line a run, and never in the way."""

import json
import os
import subprocess
import sys

import pytest

from pipeline import stage_log
from pipeline.stage_log import FILE
from pipeline.work import workdir
from tests.helpers import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setattr(stage_log, "_stage", lambda: "train")
    monkeypatch.setattr(stage_log, "_work", [])
    monkeypatch.setattr(stage_log, "_earlier", [])
    return tmp_path


def lines(here):
    return [json.loads(line) for line in (here / ".work" / FILE).read_text().splitlines()]


def test_a_run_is_a_line(here):
    with stage_log.timed("flow1"):
        pass
    [run] = stage_log.runs()
    assert (run.stage, run.row, run.finished, run.resumed, run.work) == (
        "train", "flow1", True, False, ())  # fmt: skip
    assert 0 <= run.seconds < 5
    assert run.machine == stage_log.machine()
    assert "core" in run.machine


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no")])
def test_a_run_that_ends_short_is_not_finished(here, error):
    with pytest.raises((KeyboardInterrupt, ValueError)), stage_log.timed("flow1"):
        raise error
    assert [run.finished for run in stage_log.runs()] == [False]


def test_of_a_trainings_processes_the_first_writes(here, monkeypatch):
    with pytest.raises(SystemExit), stage_log.timed("flow1"):
        sys.exit(0)  # as their launcher does
    monkeypatch.setenv("RANK", "1")
    with stage_log.timed("flow1"):
        pass
    assert stage_log.runs() == []
    monkeypatch.setenv("RANK", "0")
    with stage_log.timed("flow1"):
        pass
    assert len(stage_log.runs()) == 1


def test_staged_work_is_named_and_earlier_work_told(here):
    """The identity's directory: the second run finds it."""
    with stage_log.timed("flow1"), workdir.staging("train", {"a": 1}) as work:
        pass
    first = stage_log.runs()[-1]
    assert (first.resumed, first.work) == (False, (work.path.name,))
    stage_log._work.clear()
    with stage_log.timed("flow1"), workdir.staging("train", {"a": 1}):
        pass
    second = stage_log.runs()[-1]
    assert (second.resumed, second.work) == (True, first.work)


def test_what_is_no_stage_writes_nothing(here, monkeypatch):
    monkeypatch.undo()
    os.chdir(here)
    with stage_log.timed("flow1"):
        pass
    assert not (here / ".work" / FILE).exists()


def test_lines_that_are_none_are_left_out(here):
    with stage_log.timed("flow1"):
        pass
    good = (here / ".work" / FILE).read_text()
    bad = '{"stage": 1}\n[]\n\x00\nnull\n{"stage": "train", "seconds": "x"}\n{"cut": \n'
    (here / ".work" / FILE).write_text(bad + good + good[:20])
    assert len(stage_log.runs()) == 1


def test_only_the_end_of_a_long_log_is_read(here, monkeypatch):
    for i in range(50):
        with stage_log.timed(f"flow{i}"):
            pass
    monkeypatch.setattr(stage_log, "READ", 2000)
    found = [run.row for run in stage_log.runs()]
    assert found[-1] == "flow49"
    assert 1 < len(found) < 50


def test_a_missing_log_is_empty(here):
    assert stage_log.runs() == []
    assert not (here / ".work").exists()


def test_a_log_that_cannot_be_written_stops_nothing(here):
    (here / ".work" / FILE).mkdir(parents=True)
    with stage_log.timed("flow1"):
        pass
    assert stage_log.runs() == []


def test_a_stage_records_itself(tmp_path):
    """The whole way: a stage that fails for want of params, and is no result."""
    (tmp_path / ".dvc").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.source"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    [line] = lines(tmp_path)
    assert (line["stage"], line["row"], line["finished"]) == ("source", "", False)
