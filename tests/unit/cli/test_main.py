"""What a user can get wrong is one clear line and exit code 2, without a traceback."""

import importlib
import json
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from pipeline.cli import main
from pipeline.stages.evaluate import save_grid
from pipeline.work import workdir
from rfpp_core.config import build
from rfpp_core.images.pixels import to_uint8
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import checkpoint
from tests.helpers import ROOT, SMOKE, randomised, save_tiny, spec_for, tiny_arch

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs ``main`` in this process as a command with arguments in a directory."""

    def run(main, *args, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return Done(code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def rfpp(call):
    return lambda *args, cwd: call(main.entry, *args, cwd=cwd)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    save_tiny(path / "flow.safetensors")
    (path / "dvc.yaml").touch()
    tensors = build.field(tiny_arch()).state_dict()
    tensors["model.stem.weight"] = torch.zeros(2, 2)
    checkpoint.save(path / "wrong.safetensors", tensors, {"architecture": tiny_arch()})
    (path / "junk.safetensors").write_bytes(b"junk" * 100)
    store = PairStore.create(path / "pairs.zarr", spec_for(), 40)
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    for k in (0, 1):
        store.commit(k, Pairs(images, np.full(20, -1, np.int16), None))
    return path


def test_sampling(here, rfpp):
    out = here / "out" / "grid.png"
    done = rfpp("sample", "--model", "flow.safetensors", "--n", 9, "--nfe", 2, "--out", out,
                cwd=here)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "9 images at 2 NFE" in done.stdout
    first = out.read_bytes()
    rfpp("sample", "--model", "flow.safetensors", "--n", 9, "--nfe", 2, "--out", out, cwd=here)
    assert out.read_bytes() == first
    arrays = here / "a.npz"
    rfpp("sample", "--model", "flow.safetensors", "--n", 9, "--out", arrays, cwd=here)
    assert np.load(arrays)["images"].shape == (9, 1, 8, 8)
    assert "RK45" in rfpp("sample", "--model", "flow.safetensors", "--n", 2, "--solver", "rk45",
                          cwd=here).stdout  # fmt: skip
    done = rfpp("sample", "--model", "flow.safetensors", "--nfe", 2, "--grid", "1,0.8", cwd=here)
    assert "64 images at 2 NFE" in done.stdout


def test_export(here, rfpp):
    done = rfpp("export", "made/g.onnx", "--model", "flow.safetensors", "--nfe", 2, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "at 2 NFE -> made/g.onnx; its images differ from the flow's by at most" in done.stdout
    assert (here / "made" / "g.onnx").stat().st_size > 10_000


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
        (["preset", "mnist"], f"there is no preset 'mnist' (presets: {', '.join(PRESETS)})"),
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


@pytest.fixture(scope="module")
def pictures(here):
    from PIL import Image

    folder = here / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    save_tiny(here / "conditional.safetensors", classes=10)
    return folder


@pytest.mark.parametrize(
    ("args", "said", "noises"),
    [
        (["invert", "--model", "flow.safetensors"], "3 images, 8 NFE each way", 3),
        (["invert", "--model", "flow.safetensors", "--solver", "rk45"], "3 images", 3),
        (["invert", "--model", "conditional.safetensors", "--label", "3"], "3 images", 3),
        (["interpolate", "--model", "flow.safetensors", "--steps", "6"], "6 images between", 6),
        (["translate", "--model", "conditional.safetensors", "--from", "1", "--to", "2"],
         "3 images from class 1 to 2", 3),
    ],
)  # fmt: skip
def test_editing(here, pictures, rfpp, tmp_path, args, said, noises):
    done = rfpp(*args, pictures, "--out", tmp_path, cwd=here)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert np.load(tmp_path / "noises.npz")["noise"].shape == (noises, 1, 8, 8)
    assert (tmp_path / "strip.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["invert", "nowhere.png", "--model", "flow.safetensors"], "nowhere.png does not exist"),
        (["invert", "junk.safetensors", "--model", "flow.safetensors"], "not a readable image"),
        (["invert", "pictures", "--model", "flow.safetensors", "--nfe", "0"], "at least 1"),
        (["invert", "pictures", "--model", "flow.safetensors", "--solver", "x"], "unknown solver"),
        (["invert", "pictures", "--model", "conditional.safetensors"], "give a label in 0..9"),
        (["invert", "pictures", "--model", "conditional.safetensors", "--label", "99"], "0..9"),
        (["interpolate", "pictures/0.png", "--model", "flow.safetensors"], "takes two images"),
        (["translate", "pictures", "--model", "flow.safetensors", "--from", "0", "--to", "1"],
         "without labels"),
    ],
)  # fmt: skip
def test_editing_mistakes(here, pictures, rfpp, args, message):
    done = rfpp(*args, cwd=here)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (here / "edited").exists()


def test_presets_keep_what_was_edited(here, rfpp):
    assert rfpp("preset", "smoke", cwd=here).returncode == 0
    params = here / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    done = rfpp("preset", "digits", cwd=here)
    assert "kept as params.yaml.bak1" in done.stdout
    assert (here / "params.yaml.bak1").read_text().endswith("# mine\n")


def test_pairs(here, rfpp):
    done = rfpp("pairs", "verify", "pairs.zarr", cwd=here)
    assert (done.returncode, done.stdout) == (0, "pairs.zarr: 40 pairs in 2 shards, all right\n")
    digest = rfpp("pairs", "digest", "pairs.zarr", cwd=here).stdout
    assert digest == PairStore.open(here / "pairs.zarr").digest() + "\n"
    PairStore.open(here / "pairs.zarr").shard_files(1)[0].write_bytes(b"")
    done = rfpp("pairs", "verify", "pairs.zarr", cwd=here)
    assert done.returncode == 2
    assert "shard 1" in done.stderr
    (here / "pairs.zarr/commits/000000.json").write_text("{}")
    done = rfpp("pairs", "verify", "--repair", "pairs.zarr", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "forgot shard(s) 0, 1; `dvc repro` makes them again" in done.stdout
    assert PairStore.open(here / "pairs.zarr").missing() == [0, 1]


@pytest.mark.parametrize(
    ("command", "old", "new", "message"),
    [
        ("prepare", "seed: 0", "sed: 0", "unknown param 'sed' (allowed: dataset"),
        ("pretrain", "batch: 64", "batch: 2000", "batch is 2000 but there are only 1438 images"),
        ("pretrain", "multipliers: [1, 2]", "multipliers: [1, 2, 2, 2, 2]", "a multiple of 16"),
        ("generate 2", "seed: 0", "seed: 0", "flow1.safetensors is missing; `dvc repro` makes it"),
        ("generate 7", "seed: 0", "seed: 0", "there is no round 7 in params.yaml (rounds: 2)"),
        ("reflow 2", "seed: 0", "seed: 0", "flow1.safetensors is missing; `dvc repro` makes it"),
        (
            "evaluate flow2",
            "seed: 0",
            "seed: 0",
            "features.safetensors is missing; `dvc repro ref",
        ),
    ],
)
def test_stages(tmp_path, call, command, old, new, message):
    text = SMOKE.read_text()
    assert old in text
    name, *args = command.split()

    def run(name, *args):
        module = importlib.import_module(f"pipeline.{name}")
        return call(lambda: workdir.main(module.run, *["x"] * len(args)), *args, cwd=tmp_path)

    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / ".dvc").mkdir()
    if name == "pretrain":
        assert run("source").returncode == 0
        assert run("prepare").returncode == 0
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
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


@pytest.fixture(scope="module")
def labelled(here):
    return save_tiny(here / "labelled.safetensors", classes=3)


FLOW = ["--model", "flow.safetensors"]
LABELLED = ["--model", "labelled.safetensors"]


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
    (["import-checkpoint", "a", "b", "--arch", str(SMOKE), "--shape", "nan"], "--shape is 'nan'"),
    (["import-checkpoint", "a", "b", "--arch", str(SMOKE), "--shape", "3,9999999,3"], "--shape"),
    (["sample", "--wrong"], "No such option"),
    (["preset", "digits", "--set", "reflow.steps"], "must be like reflow.steps=100"),
    (["preset", "digits", "--set", "reflow.steps=x"], "reflow.steps is 'x'"),
    (["preset", "digits", "--set", "reflow.stepz=3"], "unknown param 'reflow.stepz'"),
    (["preset", "digits", "--set", "seed.x=3"], "no place in a params file"),
    (["preset", "digits", "--set", "seed=[1"], "no value in YAML"),
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


def test_a_preset_outside_a_project(tmp_path, rfpp):
    done = rfpp("preset", "smoke", cwd=tmp_path)
    assert done.returncode == 2
    assert "no dvc.yaml" in done.stderr
    assert not list(tmp_path.iterdir())
    assert rfpp("preset", "smoke", "--out", "x.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", PRESETS)
def test_values_set_beside_a_preset(tmp_path, rfpp, name):
    """They are there, all else is the preset's, and so are its comments."""
    values = ["reflow.times.law=uniform", "seed=7", "evaluate.nfe=[1, 2]", "network.channels=12",
              "dataset.limit=null", "evaluate.grids.2=[1.0, 0.8]", "finetunes={}"]  # fmt: skip
    sets = [part for value in values for part in ("--set", value)]
    done = rfpp("preset", name, *sets, "--out", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, before = (tmp_path / "p.yaml").read_text(), (ROOT / f"presets/{name}.yaml").read_text()
    want, found = yaml.safe_load(before), yaml.safe_load(text)
    want["reflow"]["times"]["law"], want["seed"], want["finetunes"] = "uniform", 7, {}
    want["evaluate"] |= {"nfe": [1, 2], "grids": {**want["evaluate"]["grids"], "2": [1.0, 0.8]}}
    want["network"]["channels"], want["dataset"]["limit"] = 12, None
    found["evaluate"]["grids"] = {str(k): v for k, v in found["evaluate"]["grids"].items()}
    assert found == want
    comments = [line for line in before.splitlines() if line.strip().startswith("#")]
    assert comments == [line for line in text.splitlines() if line.strip().startswith("#")]


def test_labels_of_what_is_drawn(here, labelled, rfpp):
    flow = build.load_flow(labelled)
    assert rfpp("sample", *LABELLED, "--n", 7, "--out", "l.npz", cwd=here).returncode == 0
    arrays = np.load(here / "l.npz")
    again = to_uint8(flow.sample(7, labels=arrays["labels"].tolist())).numpy()
    assert (arrays["images"] == again).all()
    assert (arrays["images"] == to_uint8(flow.sample(7)).numpy()).all()
    assert "24 images" in rfpp("sample", *LABELLED, "--out", "l.png", cwd=here).stdout
    by_row = flow.sample(24, labels=[i // 8 for i in range(24)])
    save_grid(by_row, here / "want.png", 8)
    assert (here / "l.png").read_bytes() == (here / "want.png").read_bytes()
    rfpp("sample", *LABELLED, "--n", 2, "--label", 1, "--out", "l.npz", cwd=here)
    assert np.load(here / "l.npz")["labels"].tolist() == [1, 1]
    rfpp("sample", *FLOW, "--n", 2, "--out", "l.npz", cwd=here)
    assert np.load(here / "l.npz")["labels"].tolist() == [-1, -1]


def test_translation_is_guided(here, pictures, labelled, rfpp):
    strips = []
    for scale in ("1", "4"):
        done = rfpp("translate", "pictures", *LABELLED, "--from", 0, "--to", 1, "--guidance",
                    scale, "--out", here / "guided", cwd=here)  # fmt: skip
        assert done.returncode == 0, done.stderr
        strips.append((here / "guided/strip.png").read_bytes())
    assert strips[0] != strips[1]


def test_a_state_is_sampled_by_its_average(here, rfpp):
    arch = tiny_arch()
    folder = here / "work/reflow/abc"
    for step, seed in ((5, 1), (10, 2)):
        net, average = (randomised(build.field(arch), s).state_dict() for s in (9, seed))
        tensors = {f"net.{k}": t for k, t in net.items()} | {
            f"ema.{k}": t for k, t in average.items()
        }
        checkpoint.save_state(folder, step, tensors, {"step": step})
    done = rfpp("sample", "--model", folder, cwd=here)
    assert done.returncode == 2
    assert "names no architecture" in done.stderr
    (folder / "identity.json").write_text(json.dumps({"architecture": arch}))
    want = save_tiny(here / "want.safetensors", seed=2)
    for name, path in (("s", folder), ("t", folder / "state-000000010.safetensors"), ("w", want)):
        done = rfpp("sample", "--model", path, "--n", 3, "--out", f"{name}.npz", cwd=here)
        assert done.returncode == 0, done.stderr
    drawn = [np.load(here / f"{name}.npz")["images"] for name in "stw"]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] == drawn[2]).all()
