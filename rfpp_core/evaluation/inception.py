"""The Inception network of FID, through clean-fid (Parmar et al., arXiv 2104.11222).

clean-fid's file is TorchScript, and loading it runs code: it is loaded only if its sha256 is the
published one, or one that the params state.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rfpp_core.errors import UserError
from rfpp_core.storage.downloads import Published, fetch

WEIGHTS = Published(
    "Inception of FID (features.nets)",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    "features.inception_path",
    runs=True,
)


def load(
    given: str | None, sha256: str | None, clean: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The features (B, 2048) of uint8 images (B, C, H, W), grey or RGB.

    Args:
        given: path of the file, or None for torch.hub's cache, filled by download.
        sha256: digest that the params state, or None for the published file's.
        clean: clean-fid's ``clean`` resizing (antialiased, bicubic), else ``legacy_tensorflow``,
            which published FIDs use (bilinear, inside the network).
        device: where it runs.

    Raises:
        UserError: if the file is missing and cannot be downloaded, has another digest, or does
            not load.
    """
    path = fetch(WEIGHTS, given, sha256)
    net = _network(path, clean, device)
    resize = _resizer() if clean else None

    def features(images: Tensor) -> Tensor:
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = resize(x) if resize else x.float()
        out: Tensor = net(x.to(device))
        return out

    return features


def _network(path: Path, clean: bool, device: torch.device) -> torch.nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder:  # clean-fid takes a folder and knows the name
        (Path(folder) / "inception-2015-12-05.pt").symlink_to(path.resolve())
        try:
            net: torch.nn.Module = InceptionV3W(folder, download=False, resize_inside=not clean)
        except (RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not clean-fid's Inception: {reason}") from None
    return net.to(device).eval()


def _resizer() -> Callable[[Tensor], Tensor]:
    from cleanfid.resize import build_resizer

    one = build_resizer("clean")

    def resize(images: Tensor) -> Tensor:
        rows = [torch.from_numpy(one(image.permute(1, 2, 0).numpy())) for image in images.cpu()]
        return torch.stack(rows).permute(0, 3, 1, 2)

    return resize
