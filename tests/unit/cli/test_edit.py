"""``rfpp transfer``, ``invert``, ``interpolate`` and ``translate``: files of images in, images and
noise out."""

import numpy as np
import pytest
from PIL import Image

from rfpp_core.storage import checkpoint
from tests.helpers import save_tiny

LABELLED = ["--model", "labelled.safetensors"]
ATTENTIVE = ["--model", "attentive.safetensors"]


@pytest.fixture(scope="module")
def attentive(here):
    """A conditional flow whose network has attention."""
    return save_tiny(here / "attentive.safetensors", classes=3, attention=1)


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
        (["translate", "pictures", *LABELLED, "--from", "0", "--to", "1", "--share", "1"],
         "no attention"),
        (["translate", "pictures", *ATTENTIVE, "--from", "0", "--to", "1", "--share", "9"],
         "share is 9, but 8 NFE of euler are 8 steps; give 1 to 8"),
        (["translate", "pictures", *ATTENTIVE, "--from", "0", "--to", "1", "--share", "-1"],
         "share is -1"),
        (["translate", "pictures", *ATTENTIVE, "--from", "0", "--to", "1", "--share", "2",
          "--solver", "midpoint", "--nfe", "7"], "give 8"),
        (["translate", "pictures", *ATTENTIVE, "--from", "0", "--to", "1", "--share", "2",
          "--solver", "rk45"], "no steps that lead both ways"),
        (["translate", "pictures", *ATTENTIVE, "--from", "0", "--to", "7", "--share", "2"],
         "out of range 0..2"),
    ],
)  # fmt: skip
def test_editing_mistakes(here, pictures, labelled, attentive, rfpp, args, message):
    done = rfpp(*args, cwd=here)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (here / "edited").exists()


@pytest.fixture(scope="module")
def between(here):
    """A flow from images of classes 0 and 1 to those of 2."""
    found = checkpoint.load(save_tiny(here / "between.safetensors"))
    domains = {"source": [0, 1], "target": [2]}
    checkpoint.save(here / "between.safetensors", found.tensors,
                    {**found.metadata, "domains": domains})  # fmt: skip
    return ["--model", "between.safetensors"]


def test_transfer_there_and_back(here, pictures, between, rfpp, tmp_path):
    """Translations go back to the images, at the precision of 64 midpoint steps and of a PNG."""
    options = [*between, "--nfe", "128", "--solver", "midpoint"]
    done = rfpp("transfer", pictures, *options, "--out", tmp_path / "there", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "3 images from classes 0, 1 to 2" in done.stdout
    there = np.load(tmp_path / "there/images.npz")
    assert there["images"].shape == (3, 1, 8, 8)
    assert (tmp_path / "there/strip.png").stat().st_size > 0
    for i, image in enumerate(there["images"]):
        Image.fromarray(image[0]).save(tmp_path / f"{i}.png")
    moved = [tmp_path / f"{i}.png" for i in range(3)]
    done = rfpp("transfer", *moved, *options, "--backwards", "--out", tmp_path / "back", cwd=here)
    assert "3 images from classes 2 to 0, 1" in done.stdout
    back = np.load(tmp_path / "back/images.npz")
    np.testing.assert_array_equal(back["given"], there["images"])
    inside = (there["images"] > 0) & (there["images"] < 255)  # others were clipped
    whole = inside.all((1, 2, 3))
    gap = np.abs(back["images"].astype(int) - there["given"])
    assert gap[whole].max(initial=0) <= 3
    assert gap.mean() < np.abs(there["images"].astype(int) - there["given"]).mean()


@pytest.mark.parametrize(
    "command",
    [["sample"], ["grid", "--n", "3", "--anchors", "8"], ["invert", "pictures"],
     ["interpolate", "pictures"]],
)  # fmt: skip
def test_what_needs_noise_names_transfer(here, pictures, between, rfpp, command):
    done = rfpp(*command, *between, cwd=here)
    assert done.returncode == 2
    assert "translates images of classes 0, 1 to classes 2" in done.stderr
    assert "use `rfpp transfer IMAGES`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_transfer_needs_a_flow_between_domains(here, pictures, rfpp):
    done = rfpp("transfer", "pictures", "--model", "flow.safetensors", cwd=here)
    assert done.returncode == 2
    assert "starts from noise, not from images" in done.stderr


def test_translation_is_guided(here, pictures, labelled, rfpp):
    strips = []
    for scale in ("1", "4"):
        done = rfpp("translate", "pictures", *LABELLED, "--from", 0, "--to", 1, "--guidance",
                    scale, "--out", here / "guided", cwd=here)  # fmt: skip
        assert done.returncode == 0, done.stderr
        strips.append((here / "guided/strip.png").read_bytes())
    assert strips[0] != strips[1]


def test_translation_shares_values(here, pictures, attentive, rfpp):
    """None by default; the inversion is the same, and what follows is not."""
    said, noises, strips = [], [], []
    for share in ([], ["--share", 0], ["--share", 3]):
        done = rfpp("translate", "pictures", *ATTENTIVE, "--from", 0, "--to", 1, *share,
                    "--solver", "rf-solver", "--out", here / "shared", cwd=here)  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        noises.append(np.load(here / "shared/noises.npz")["noise"])
        strips.append((here / "shared/strip.png").read_bytes())
    assert said[0] == said[1] == f"3 images from class 0 to 1 -> {here / 'shared'}\n"
    assert "values of 3 steps shared, 0.0123 MB an image; mean square change" in said[2]
    assert strips[0] == strips[1] != strips[2]
    assert (noises[0] == noises[2]).all()
