import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from rfpp_core.errors import UserError
from rfpp_core.evaluation import extractors, inception
from tests.unit.evaluation.test_extractors import uint8


class StandIn(nn.Module):
    """What clean-fid expects of its Inception file."""

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


@pytest.mark.parametrize("mode", ["legacy_tensorflow", "clean"])
def test_inception_features_are_clean_fid_s(stand_in, mode, tmp_path, monkeypatch):
    """Against clean-fid's own loader of image files, resizing and network wrapper."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    path, sha256 = stand_in
    images = uint8()
    net = inception.load(str(path), sha256, mode == "clean", torch.device("cpu"))
    ours = extractors.extract(net, images)
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
        extractors.extract(net, grey), extractors.extract(net, grey.expand(-1, 3, -1, -1))
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
