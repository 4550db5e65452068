"""``rfpp work``: staged work is not removed by accident."""

from __future__ import annotations

import io
from pathlib import Path

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


BROKEN = ["", "{", "[]", "null", "5", "\xff", "[" * 10**5, '{"shard": "x"}', '{"training": 1}',
          '{"training": {}, "code": 1}', '{"training": {}, "code": {}, "data": []}']  # fmt: skip


@pytest.fixture
def broken(staged):
    """An entry whose identity cannot be read, and one that was a file."""
    path = staged[0].with_name("0" * 16)
    path.mkdir()
    (path / "identity.json").write_bytes(b"{")
    (staged[0].with_name("1" * 16) / "identity.json").mkdir(parents=True)
    return path


def test_a_broken_entry_is_named_and_skipped(staged, broken, rfpp):
    done = rfpp("work", "list", cwd=Path.cwd())
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        f"{path.parent.name}/{path.name}" for path in staged
    ]
    [line, other] = done.stderr.splitlines()
    assert line.startswith(
        f"rfpp: pairs/{broken.name} is skipped: its identity.json cannot be read"
    )
    assert "`rfpp work clean pairs/0000000000000000` removes it" in line
    assert other.startswith("rfpp: pairs/1111111111111111 is skipped")


@pytest.mark.parametrize("text", BROKEN)
def test_no_identity_is_a_traceback(staged, broken, rfpp, text):
    (broken / "identity.json").write_bytes(text.encode("latin-1"))
    (broken / "flow-x.safetensors").touch()
    (broken / "state-x.json").touch()
    name = f"pairs/{broken.name}"
    assert rfpp("work", "list", cwd=Path.cwd()).returncode == 0
    done = rfpp("work", "adopt", name, cwd=Path.cwd())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert name in done.stderr
    done = rfpp("work", "adopt", staged[0].name, cwd=Path.cwd())  # beside it
    assert "only trainings and pairs can be adopted" in done.stderr
    assert rfpp("work", "clean", name, cwd=Path.cwd()).stdout == f"removed {name}\n"


def test_what_vanishes_while_it_is_listed_is_no_error(staged, rfpp, monkeypatch):
    """As the temporary files of a running stage do."""
    (staged[0] / "gone").symlink_to("nowhere")
    monkeypatch.setattr(work, "_files", lambda path: [path / "gone"])
    done = rfpp("work", "list", cwd=Path.cwd())
    assert (done.returncode, done.stderr) == (0, "")
