"""``rfpp grid``, and ``--grid`` of a file that it wrote."""

import json

import numpy as np
import pytest

from pipeline.console import save_grid
from rfpp_core.config import build
from rfpp_core.sampling.sampler import SamplerConfig
from tests.helpers import save_tiny

FLOW = ["--model", "flow.safetensors"]


@pytest.fixture
def searched(here, rfpp):
    done = rfpp("grid", *FLOW, "--steps", 3, "--n", 20, "--anchors", 10, cwd=here)
    assert done.returncode == 0, done.stderr
    return done


def test_a_model_is_sampled_on_the_grid_that_was_searched_for_it(here, rfpp, searched):
    times = json.loads((here / "grid.json").read_text())["times"]
    assert list(times) == ["1", "2", "3"]
    lines = searched.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("steps")
    assert lines[-1] == "grids of flow.safetensors -> grid.json"
    done = rfpp("sample", *FLOW, "--nfe", 3, "--grid", "grid.json", "--n", 5, "--out", "s.npz",
                cwd=here)  # fmt: skip
    assert done.returncode == 0, done.stderr
    sampler = SamplerConfig("euler", 3, times=tuple(times["3"]))
    images = build.load_flow(here / "flow.safetensors").sample(4, sampler=sampler)
    save_grid(images, here / "want.png", 2)
    done = rfpp("sample", *FLOW, "--nfe", 3, "--grid", "grid.json", "--n", 4, "--out", "got.png",
                cwd=here)  # fmt: skip
    assert (here / "got.png").read_bytes() == (here / "want.png").read_bytes()
    assert np.load(here / "s.npz")["images"].shape == (5, 1, 8, 8)


def test_two_stages_a_step_take_twice_the_evaluations(here, rfpp, searched):
    done = rfpp("sample", *FLOW, "--nfe", 6, "--solver", "midpoint", "--grid", "grid.json",
                "--n", 2, cwd=here)  # fmt: skip
    assert "2 images at 6 NFE" in done.stdout


def test_a_grid_file_of_another_model_is_refused_in_a_line(here, rfpp, searched):
    save_tiny(here / "other.safetensors", seed=5)
    for args, said in (
        (["--model", "other.safetensors", "--nfe", 2], "was searched for another model"),
        ([*FLOW, "--solver", "rk45"], "rk45 chooses its own times; leave out --grid"),
        ([*FLOW, "--nfe", 4], "4 NFE by euler are 4; `rfpp grid --steps 4` searches"),
    ):
        done = rfpp("sample", *args, "--grid", "grid.json", cwd=here)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = rfpp("sample", *FLOW, "--grid", "none.json", cwd=here)
    assert "none.json does not exist; `rfpp grid` writes one" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--steps", 0], "--steps is 0; it must be from 1 to 100"),
        (["--steps", 11, "--anchors", 10], "--steps is 11; it must be from 1 to 10"),
        (["--anchors", 1], "--anchors is 1; it must be from 2 to 1000"),
        (["--n", 0], "--n is 0"),
        (["--seed", -1], "--seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(here, rfpp, args, said):
    done = rfpp("grid", *FLOW, *args, cwd=here)
    assert done.returncode == 2
    assert said in done.stderr
