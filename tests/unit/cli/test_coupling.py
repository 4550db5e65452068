"""``rfpp coupling``: the arms of a flow's first pool, and what is refused in a line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from rfpp_core.images import sources
from rfpp_core.images import store as image_store
from tests.helpers import SMOKE

MATCHED = {"flow3": {"recipe": "pretrain", "data": "images", "mix": "images", "start": "unet"}}


@pytest.fixture
def run(tmp_path, rfpp, monkeypatch):
    """Runs the command on 90 digits, with options of the recipe changed."""
    monkeypatch.setenv("RFPP_DEVICE", "cpu")
    digits = sources.digits().take(np.arange(100))
    image_store.write(tmp_path / "data/images.zarr", digits, np.arange(100) >= 90)

    def run(*args, conditional=False, **options):
        raw = yaml.safe_load(SMOKE)
        raw["networks"]["unet"] |= {"conditional": conditional, "channels": 8}
        raw["recipes"]["pretrain"] |= {"batch": 16, **options}
        raw["flows"] |= MATCHED
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        return rfpp("coupling", *args, cwd=tmp_path)

    return run


@pytest.mark.parametrize("conditional", [False, True])
def test_matching_shortens_paths_and_parts_them(run, tmp_path, conditional):
    done = run("--out", "found.json", conditional=conditional, dropout=0.0)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    drawn, greedy, best = found["arms"]
    assert [arm["coupling"] for arm in found["arms"]] == ["independent", "dansm", "ot"]
    assert {arm["size"] for arm in found["arms"]} == {128}  # eight batches
    assert drawn["path_length"] > greedy["path_length"] > best["path_length"]
    assert drawn["between"] < best["between"]
    gained, most = (drawn["path_length"] - arm["path_length"] for arm in (greedy, best))
    assert found["share_of_exact_gain"] == pytest.approx(gained / most)
    assert 0 <= found["share_of_step"] < 1
    assert found["step_ms"] > 0
    assert f"dansm shortens the paths by {gained / most:.0%} of what is possible" in done.stdout
    assert done.stdout.startswith("flow1: the first pool of its training on 90 images\n")


def test_a_pool_too_large_to_assign_has_a_row_more(run, tmp_path):
    done = run("--out", "found.json", "--match", "1600", "--flow", "flow3")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [(arm["coupling"], arm["size"]) for arm in found["arms"]]
    assert rows == [("independent", 1024), ("dansm", 1024), ("ot", 1024),
                    ("independent", 1600), ("dansm", 1600)]  # fmt: skip
    assert found["arms"][4]["between"] is None
    assert found["flow"] == "flow3"


@pytest.mark.parametrize(
    ("options", "size"),
    [({"coupling": "ot"}, 16), ({"coupling": "ot", "match": 48}, 48), ({"coupling": "dansm"}, 128),
     ({"match": 50}, 128)],
)  # fmt: skip
def test_the_pool_is_that_of_the_recipe(run, tmp_path, options, size):
    """A match that an independent coupling has no use for is not looked at."""
    assert run("--out", "found.json", **options).returncode == 0
    arms = json.loads((tmp_path / "found.json").read_text())["arms"]
    assert {arm["size"] for arm in arms} == {size}


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (["--flow", "flow2"], {}, "--flow is 'flow2'; the flows that are trained on images are f"),
        (["--match", "100"], {}, "match (100) must be a multiple of batch (16), such as 96 or "),
        ([], {"batch": 2000}, "batch is 2000, and rfpp coupling compares with the best assignm"),
    ],
)
def test_mistakes(run, args, options, message):
    done = run(*args, **options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_images_the_command_that_makes_them_is_named(rfpp, tmp_path):
    (tmp_path / "params.yaml").write_text(SMOKE)
    done = rfpp("coupling", cwd=tmp_path)
    assert done.returncode == 2
    assert "`dvc repro prepare`" in done.stderr
