"""Files that cannot be used: a directory in their place, a name too long, another's: one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.cli import draw
from tests.helpers import ROOT

FLOW = ["--model", "flow.safetensors"]
LONG = "n" * 300
DIRECTORY, NO_DIRECTORY, TOO_LONG = "Is a directory", "Not a directory", "File name too long"


@pytest.fixture(scope="module")
def place(here, pictures):
    """Beside models and pictures a file and directories that stand where files should go."""
    (here / "afile").write_text("")
    for name in ("dir.png", "dir.npz", "dir.onnx", "dir.pt2", "dir"):
        (here / name).mkdir()
    return here


@pytest.mark.parametrize(("args", "name", "why"), [
    (["sample", *FLOW, "--n", "2", "--out", "dir.png"], "dir.png", DIRECTORY),
    (["sample", *FLOW, "--n", "2", "--out", "dir.npz"], "dir.npz", DIRECTORY),
    (["sample", *FLOW, "--n", "2", "--out", "afile/x.png"], "afile", NO_DIRECTORY),
    (["sample", *FLOW, "--n", "2", "--out", "afile/y/x.png"], "afile/y", NO_DIRECTORY),
    (["sample", *FLOW, "--n", "2", "--out", "afile/y/x.npz"], "afile/y", NO_DIRECTORY),
    (["sample", *FLOW, "--n", "2", "--out", f"{LONG}.png"], LONG[:150], TOO_LONG),
    (["sample", "--model", LONG], LONG[:150], TOO_LONG),
    (["sample", "--model", "afile/x"], "afile", NO_DIRECTORY),
    (["export", "afile/x.onnx", *FLOW], "afile", NO_DIRECTORY),
    (["export", "dir.onnx", *FLOW], "dir.onnx", DIRECTORY),
    (["export", "dir.pt2", *FLOW], "dir.pt2", DIRECTORY),
    (["export", f"{LONG}.onnx", *FLOW], LONG[:150], TOO_LONG),
    (["import-checkpoint", "flow.safetensors", "dir"], "dir", DIRECTORY),
    (["import-checkpoint", "flow.safetensors", "afile/x"], "afile", NO_DIRECTORY),
    (["import-checkpoint", "flow.safetensors", LONG], LONG[:150], TOO_LONG),
    (["import-checkpoint", LONG, "x.safetensors"], LONG[:150], TOO_LONG),
    (["import-checkpoint", "x", "y", "--arch", LONG], LONG[:150], TOO_LONG),
    (["invert", LONG, *FLOW], LONG[:150], TOO_LONG),
    (["invert", "pictures", *FLOW, "--out", "afile"], "afile", NO_DIRECTORY),
    (["invert", "pictures", *FLOW, "--out", LONG], LONG[:150], TOO_LONG),
    (["pairs", "verify", LONG], LONG[:150], TOO_LONG),
    (["pairs", "verify", "--repair", LONG], LONG[:150], TOO_LONG),
    (["pairs", "digest", LONG], LONG[:150], TOO_LONG),
    (["preset", "digits", "--out", "dir"], "dir", DIRECTORY),
    (["preset", "digits", "--out", LONG], LONG[:150], TOO_LONG),
    (["preset", "digits", "--out", "afile/x"], "afile", NO_DIRECTORY),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(place, rfpp, args, name, why):
    before = sorted(place.iterdir())
    done = rfpp(*args, cwd=place)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("rfpp: ")
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert why in done.stderr
    assert ".partial" not in done.stderr
    assert len(done.stderr) < 500
    assert sorted(place.iterdir()) == before  # nothing half written


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nrfpp: b", "a\u202eb", "a\rb", "a\x9bb"])
def test_no_name_of_a_file_reaches_the_terminal_raw(place, rfpp, name):
    for args in (["sample", "--model", name], ["sample", *FLOW, "--out", name],
                 ["export", name, *FLOW], ["invert", name, *FLOW], ["pairs", "verify", name],
                 ["import-checkpoint", name, "x"], ["preset", "digits", "--out", f"afile/{name}"],
                 ["preset", name], ["work", "clean", name],
                 ["compare", "--rev", name]):  # fmt: skip
        done = rfpp(*args, cwd=place)
        assert done.returncode == 2
        assert done.stderr.endswith("\n")
        assert done.stderr[:-1].isprintable(), args
        assert done.stderr.startswith("rfpp: ")


def test_another_users_file_is_one_line(place, rfpp, monkeypatch):
    def refused(*_args, **_more):
        raise PermissionError(13, os.strerror(13), "models/x\u202e.safetensors")

    monkeypatch.setattr(draw, "open_flow", refused)
    done = rfpp("sample", cwd=place)
    assert (done.returncode, done.stderr) == (
        2, r"rfpp: models/x\u202e.safetensors cannot be used: Permission denied" + "\n"
    )  # fmt: skip


def test_other_errors_are_not_hidden(place, rfpp, monkeypatch):
    monkeypatch.setattr(draw, "open_flow", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rfpp("sample", cwd=place)


def test_a_reader_that_left_is_no_error(place):
    """As ``rfpp work list | head -1`` makes it."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "pipeline.cli.main", "--version"], cwd=ROOT,
                          stdout=write, stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
