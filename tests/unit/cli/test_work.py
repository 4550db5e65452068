"""``rfpp work``: staged work is not removed by accident."""

from __future__ import annotations

import io

import pytest

from pipeline.cli import work
from pipeline.work import workdir
from rfpp_core.errors import UserError


@pytest.fixture
def staged(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = []
    for kind in ("pairs", "train"):
        with workdir.staging(kind, {"of": kind}) as made:
            paths.append(made.path)
    return paths


def test_cleaning_all_asks_first(staged, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # no terminal to ask
    with pytest.raises(UserError, match=r"would remove all 2 entries of .work .*--yes"):
        work.clean(None, yes=False)
    assert all(path.exists() for path in staged)
    work.clean(None, yes=True)
    assert not any(path.exists() for path in staged)


def test_one_is_cleaned_by_name_without_asking(staged):
    work.clean(f"pairs/{staged[0].name}", yes=False)
    assert [path.exists() for path in staged] == [False, True]


def test_work_in_use_is_kept_and_named(staged):
    """Without waiting for it."""
    with workdir.staging("train", {"of": "train"}):
        with pytest.raises(UserError, match=f"train/{staged[1].name}: in use by a running stage"):
            work.clean(None, yes=True)
    assert [path.exists() for path in staged] == [False, True]


def test_only_trainings_and_pairs_are_adopted(staged):
    with pytest.raises(UserError, match="only trainings and pairs can be adopted"):
        work.adopt(staged[0].name)
