"""``rfpp sample`` and ``rfpp export``: images of a model file, and of a training's state."""

import json

import numpy as np

from pipeline.console import save_grid
from rfpp_core.config import build
from rfpp_core.images.pixels import to_uint8
from rfpp_core.storage import checkpoint
from tests.helpers import randomised, save_tiny, tiny_arch

FLOW = ["--model", "flow.safetensors"]
LABELLED = ["--model", "labelled.safetensors"]


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


def test_a_state_is_sampled_by_its_average(here, rfpp):
    arch = tiny_arch()
    folder = here / "work/train/abc"
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
