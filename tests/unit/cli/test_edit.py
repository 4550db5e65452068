"""``rfpp invert``, ``interpolate`` and ``translate``: files of images in, images and noise out."""

import numpy as np
import pytest

LABELLED = ["--model", "labelled.safetensors"]


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


def test_translation_is_guided(here, pictures, labelled, rfpp):
    strips = []
    for scale in ("1", "4"):
        done = rfpp("translate", "pictures", *LABELLED, "--from", 0, "--to", 1, "--guidance",
                    scale, "--out", here / "guided", cwd=here)  # fmt: skip
        assert done.returncode == 0, done.stderr
        strips.append((here / "guided/strip.png").read_bytes())
    assert strips[0] != strips[1]
