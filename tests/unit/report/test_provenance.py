"""Stage times, machine and revision."""

import subprocess

import pytest

from pipeline import stage_log
from pipeline.report import provenance
from pipeline.stage_log import Run
from rfpp_core.config import params
from tests.unit.report import fakes

HERE, THERE = "CPU A, 2 cores, torch 2", "GPU B, CPU C, 16 cores, torch 2"


def ran(stage, row, seconds, finished=True, resumed=False, work=(), machine=HERE):
    return Run(stage, row, seconds, finished, resumed, tuple(work), machine)


@pytest.fixture
def config():
    return params.parse(fakes.changed())


def times(config, *runs):
    return {(one.stage, one.row): (one.seconds, one.runs) for one in provenance.took(config, runs)}


def test_runs_that_share_their_work_are_added_up(config):
    """One was interrupted, one resumed, one found all done under the row's earlier name."""
    runs = [ran("train", "old", 60, finished=False, work="a"),
            ran("train", "old", 40, resumed=True, work="a"),
            ran("train", "flow1", 2, resumed=True, work="a")]  # fmt: skip
    assert times(config, *runs) == {("train", "flow1"): (102, 3)}


def test_other_work_is_not_added(config):
    runs = [ran("train", "flow1", 60, work="a"), ran("train", "flow1", 5, work="b")]
    assert times(config, *runs) == {("train", "flow1"): (5, 1)}


def test_a_stage_without_staged_work_took_what_its_last_run_took(config):
    assert times(config, ran("prepare", "", 9), ran("prepare", "", 3)) == {("prepare", ""): (3, 1)}


def test_rows_that_the_params_lack_and_unfinished_runs_are_left_out(config):
    runs = [ran("train", "flow9", 1), ran("train", "flow1", 1, finished=False, work="a"),
            ran("report", "", 1)]  # fmt: skip
    assert times(config, *runs) == {}
    assert provenance.times(config, runs) is None


def test_the_table_has_a_total_and_says_what_it_does_not_know(config):
    runs = [ran("prepare", "", 3), ran("train", "flow1", 2, resumed=True, work="a")]
    table = provenance.times(config, runs)
    rows = [[cell.text for cell in row] for row in table.groups[0].rows]
    assert rows == [
        ["prepare", "", "3.0 s", ""],
        ["train", "flow1", "2.0 s", "found earlier work, whose time was not recorded"],
        ["all", "", "5.0 s", ""],
    ]
    assert table.groups[0].rows[1][1].flow == "flow1"


def test_machines_are_named_a_stage_where_they_differ(config):
    runs = [ran("reference", "", 3), ran("train", "flow1", 2, work="a", machine=THERE)]
    assert provenance.machines(config, runs) == f"{HERE}; {THERE}"
    assert provenance.times(config, runs).head[-1] == "machine"
    assert provenance.machines(config, []).startswith(stage_log.machine())


def test_stages_that_used_less_of_a_machine_are_of_the_same(config):
    runs = [ran("source", "", 1, machine="CPU C, 16 cores"),
            ran("train", "flow1", 2, machine=THERE),
            ran("generate", "pairs2", 2, machine="CPU C, 16 cores, torch 2")]  # fmt: skip
    assert provenance.machines(config, runs) == THERE
    assert "machine" not in provenance.times(config, runs).head


def test_the_revision_says_what_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.revision() == "not under git"

    def git(*arguments):
        settings = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)

    for name in ("params.yaml", "dvc.lock", "<b>.py"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    clean = provenance.revision()
    assert len(clean) == 12
    (tmp_path / "dvc.lock").write_text("2")
    (tmp_path / "new.txt").write_text("2")
    assert provenance.revision() == clean
    (tmp_path / "params.yaml").write_text("2")
    (tmp_path / "<b>.py").write_text("2")
    assert provenance.revision() == f"{clean}, with changes in <b>.py, params.yaml"


def test_no_git_at_all_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.revision() == "not under git"
