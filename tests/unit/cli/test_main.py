"""What a user can get wrong is one clear line and exit code 2, without a traceback."""

import importlib
import subprocess
import sys

import pytest

from pipeline import console
from pipeline.cli import presets
from tests.helpers import SMOKE

PRESETS = ", ".join(presets.names())
FLOW = ["--model", "flow.safetensors"]
ARCH = ["--arch", "smoke.yaml"]
LABELLED = ["--model", "labelled.safetensors"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "--model", "nowhere.safetensors"], "is missing; `dvc repro` makes it"),
        (["sample", "--model", "junk.safetensors"], "is not a readable safetensors file"),
        (
            ["sample", "--model", "wrong.safetensors"],
            "model.stem.weight is (2, 2), not (8, 1, 3, 3)",
        ),
        (["sample", "--model", "flow.safetensors", "--nfe", "0"], "nfe must be at least 1"),
        (["sample", "--model", "flow.safetensors", "--n", "0"], "n and nfe must be at least 1"),
        (["sample", "--model", "flow.safetensors", "--label", "1"], "without labels"),
        (["sample", "--model", "flow.safetensors", "--guidance", "2"], "guidance needs a flow"),
        (["sample", "--model", "flow.safetensors", "--solver", "rk9"], "unknown solver 'rk9'"),
        (["sample", "--model", "flow.safetensors", "--out", "x.gif"], "must end in .png or .npz"),
        (["sample", "--model", "flow.safetensors", "--grid", "1,x"], "times such as 1,0.8"),
        (["sample", "--model", "flow.safetensors", "--grid", "1,0.8"], "does not spend 1 eval"),
        (["export", "x.h5", "--model", "flow.safetensors"], "must end in .onnx or .pt2"),
        (
            ["preset", "mnist"],
            f"there is no preset 'mnist' (presets: {PRESETS})",
        ),
        (["pairs", "verify", "nowhere.zarr"], "nowhere.zarr is missing"),
        (["pairs", "digest", "flow.safetensors"], "flow.safetensors"),
        (["work", "clean", "pairs/123"], "`rfpp work list` shows"),
        (["work", "adopt", "pairs/123"], "`rfpp work list` shows"),
    ],
)
def test_mistakes(here, rfpp, args, message):
    done = rfpp(*args, cwd=here)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rfpp: ")


SET = ("evaluate: {n: 200", "evaluate: {n: 200")  # a file that is as it should be


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("prepare", ("seed: 0", "sed: 0"), "unknown param 'sed' (allowed: dataset"),
        ("train flow1", ("batch: 64", "batch: 2000"), "batch is 2000 but there are only 1438"),
        ("network unet", ("[1, 2]", "[1, 2, 2, 2, 2]"), "a multiple of 16"),
        ("generate pairs2", SET, "flow1.safetensors is missing; `dvc repro` makes it"),
        ("generate pairs7", SET, "pairs has no row 'pairs7' in params.yaml (rows: pairs2)"),
        ("train flow2", SET, "flow1.safetensors is missing; `dvc repro` makes it"),
        ("train unet", SET, "flows has no row 'unet' in params.yaml (rows: flow1, flow2)"),
        ("network edm", SET, "networks has no row 'edm' in params.yaml (rows: unet)"),
        ("evaluate flow2", SET, "features.safetensors is missing; `dvc repro ref"),
        ("evaluate \x1b[2J", SET, "flows has no row '\\x1b[2J' in params.yaml"),
    ],
)
def test_stages(tmp_path, call, command, change, message):
    name, *args = command.split(maxsplit=1)

    def run(name, *args):
        module = importlib.import_module(f"pipeline.stages.{name}")
        return call(lambda: console.main(module.run, *["x"] * len(args)), *args, cwd=tmp_path)

    (tmp_path / "params.yaml").write_text(SMOKE)
    (tmp_path / ".dvc").mkdir()
    if command in ("train flow1", "network unet", "evaluate flow2"):
        for before in (["source"], ["prepare"], ["network", "unet"]):
            assert run(*before).returncode == 0
    assert change[0] in SMOKE
    (tmp_path / "params.yaml").write_text(SMOKE.replace(*change, 1))
    done = run(name, *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_as_a_command(here):
    """The real process: exit code 2, one line, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "sample", "--model", "flow.safetensors",
         "--nfe", "0"],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rfpp: nfe must be at least 1 and at most 100000; got 0\n"


@pytest.mark.parametrize("command", [
    ["sample"], ["export", "x.onnx"], ["translate", "pictures", "--from", "0", "--to", "1"],
])  # fmt: skip
@pytest.mark.parametrize("scale", ["nan", "inf", "-1"])
def test_a_guidance_that_is_no_scale(here, pictures, labelled, rfpp, command, scale):
    done = rfpp(*command, *LABELLED, "--guidance", scale, cwd=here)
    assert done.returncode == 2
    assert done.stderr.startswith("rfpp: guidance must be a finite number of at least 0")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("args", "message"), [
    (["sample", *FLOW, "--n", "nan"], "'--n'"),
    (["sample", *FLOW, "--n", "-3"], "n and nfe must be at least 1"),
    (["sample", *FLOW, "--n", "9" * 30], "--n is 9"),
    (["sample", *FLOW, "--nfe", "9" * 12], "at most 100000"),
    (["sample", *FLOW, "--seed", "x"], "'--seed'"),
    (["sample", *FLOW, "--nfe", "2", "--grid", "nan,0.5"], "a grid must fall strictly"),
    (["sample", *FLOW, "--solver", "x\x1b[2J"], "rk45"),
    (["sample", *FLOW, "--solver", "rk2:nan"], "rk2:<delta>, 0 < delta <= 1"),
    (["sample", "--model", "."], "holds no training state"),
    (["invert", "nope.png", *FLOW], "nope.png does not exist; give image files, folders or zips"),
    (["interpolate", "pictures", *FLOW, "--steps", "100000000"], "2 to 1000 steps"),
    (["import-checkpoint", "a", "b", *ARCH, "--shape", "nan"], "--shape is 'nan'"),
    (["import-checkpoint", "a", "b", *ARCH, "--shape", "3,9999999,3"], "--shape"),
    (["sample", "--wrong"], "No such option"),
    (["preset", "digits", "--set", "recipes.reflow.steps"],
     "must be like recipes.reflow.steps=100"),
    (["preset", "digits", "--set", "recipes.reflow.steps=x"], "recipes.reflow.steps is 'x'"),
    (["preset", "digits", "--set", "recipes.reflow.stepz=3"],
     "unknown param 'recipes.reflow.stepz'"),
    (["preset", "digits", "--set", "reflow.steps=3"], "preset digits is of an earlier version"),
    (["preset", "digits", "--set", "seed.x=3"], "not a place in a params file"),
    (["preset", "digits", "--set", "seed=[1"], "not a value in YAML"),
    (["preset", "digits", "--set", "seed=1\nx: 2"], "--set"),
])  # fmt: skip
def test_odd_values(here, pictures, rfpp, args, message):
    done = rfpp(*args, cwd=here)
    assert done.returncode == 2
    assert message in done.stderr
    assert "params.yaml" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert not (here / "params.yaml.bak2").exists()


def test_version(here, rfpp):
    done = rfpp("--version", cwd=here)
    assert (done.returncode, done.stdout[:6]) == (0, "rfpp 0")
    assert "Usage" in rfpp(cwd=here).stdout + rfpp(cwd=here).stderr
