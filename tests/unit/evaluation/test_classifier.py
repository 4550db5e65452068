import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier, inception
from rfpp_core.storage import downloads


class StandIn(nn.Module):
    """What clean-fid asks of its Inception file."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 1), nn.AdaptiveAvgPool2d(1))

    def forward(self, x, return_features: bool = False):
        x = nn.functional.interpolate(x.float(), (299, 299), mode="bilinear")
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "stand_in.pt"
    torch.manual_seed(0)
    torch.jit.script(StandIn()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def uint8(n=3, channels=3, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["legacy_tensorflow", "clean"])
def test_inception_features_are_clean_fid_s(stand_in, mode, tmp_path, monkeypatch):
    """Against clean-fid's own loader of image files, resizing and network wrapper."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    path, sha256 = stand_in
    images = uint8()
    net = inception.load(str(path), sha256, mode == "clean", torch.device("cpu"))
    ours = classifier.extract(net, images)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "inception-2015-12-05.pt").symlink_to(path)
    theirs = InceptionV3W(str(tmp_path), download=False, resize_inside=mode != "clean")
    expected = fid.get_folder_features(
        str(tmp_path), theirs, num_workers=0, mode=mode, device="cpu", verbose=False
    )
    assert ours.shape == (3, 2048)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_grey_images_are_seen_as_rgb(stand_in):
    net = inception.load(*map(str, stand_in), False, torch.device("cpu"))
    grey = uint8(channels=1)
    np.testing.assert_array_equal(
        classifier.extract(net, grey), classifier.extract(net, grey.expand(-1, 3, -1, -1))
    )


def test_a_file_of_another_digest_is_not_run(stand_in):
    path, _ = stand_in
    with pytest.raises(UserError, match=r"sha256 .*, not f58cb9b6.*features.inception_path"):
        inception.load(str(path), None, False, torch.device("cpu"))


def test_a_file_that_is_not_inception(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"no TorchScript")
    digest = hashlib.sha256(b"no TorchScript").hexdigest()
    with pytest.raises(UserError, match="is not clean-fid's Inception"):
        inception.load(str(path), digest, False, torch.device("cpu"))


def test_weights_offline(tmp_path, monkeypatch):
    """The file, where it comes from, and the param that takes a path."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "source").write_bytes(b"weights")
    here = downloads.Published("A net", f"file://{tmp_path}/absent-net.pt", "0" * 64, "a.path")
    said = (r"absent-net.pt is not in .* cannot be downloaded: .*A net: absent-net.pt comes from "
            r"file:.*; a.path takes a path")  # fmt: skip
    with pytest.raises(UserError, match=said):
        downloads.fetch(here, None)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"gone.pt is missing .*a.path takes a path"):
        downloads.fetch(here, str(tmp_path / "gone.pt"))
    digest = hashlib.sha256(b"weights").hexdigest()
    there = downloads.Published("A net", f"file://{tmp_path}/source", digest, "a.path")
    assert downloads.fetch(there, None).read_bytes() == b"weights"  # downloaded
    downloads.fetch(there, None).write_bytes(b"damaged")
    with pytest.raises(UserError, match="has sha256"):
        downloads.fetch(there, None)
    other = there._replace(url=f"file://{tmp_path}/source", sha256="1" * 64)
    downloads.cache().joinpath("source").unlink()
    with pytest.raises(UserError, match="cannot be downloaded: invalid hash"):
        downloads.fetch(other, None)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 32), (1, 28), (3, 5)])
def test_the_classifier_takes_any_size(channels, side):
    net = classifier.new_classifier(channels, 4, side, 0)
    images = uint8(2, channels, side)
    assert classifier.extract(net.of_uint8, images).shape == (2, classifier.DIM)
    assert net.deeper.__len__() == {5: 0, 8: 0, 16: 1, 28: 2, 32: 2}[side]


def test_pixels_are_averaged():
    images = uint8(2, 3, 16)
    found = classifier.extract(classifier.pooled_pixels, images)
    blocks = images.double().reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1) / 127.5 - 1
    np.testing.assert_allclose(found, blocks, atol=0.01)
