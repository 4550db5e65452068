"""Published weight files: at a path from the params, in the cache, or downloaded; checked by
digest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from rfpp_core.errors import UserError, quoted
from rfpp_core.storage import files


class Published(NamedTuple):
    """A weight file that others publish.

    ``runs``: loading it runs code (TorchScript), so it must have the published digest, or one that
    the user states, even at a path from the params.
    """

    what: str  # what it is and what needs it, for messages
    url: str
    sha256: str
    param: str  # the param that takes a path
    runs: bool = False


def fetch(weights: Published, given: str | None, sha256: str | None = None) -> Path:
    """The path of a weight file.  Its digest is checked, unless it is plain data at a path from
    the params.

    Args:
        weights: which.
        given: a path from the params; None for the cache of torch.hub, filled by download.
        sha256: a digest that the user states, instead of the published one.

    Raises:
        UserError: naming the file, where it comes from, and the param that takes a path.
    """
    want, name = sha256 or weights.sha256, weights.url.rpartition("/")[2]
    hint = f"{weights.what}: {name} comes from {weights.url}; {weights.param} takes a path"
    path = Path(given) if given else cache() / name
    if not os.path.exists(path):  # nor a name that no file can have
        if given:
            raise UserError(f"{quoted(path)} is missing ({hint})")
        _download(weights.url, path, want, hint)
    if given and not weights.runs:
        return path
    if (found := files.sha256(path)) != want:
        raise UserError(f"{path} has sha256 {found}, not {want} ({hint})")
    return path


def cache() -> Path:
    """torch.hub's folder of checkpoints; ``TORCH_HOME`` moves it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _download(url: str, path: Path, sha256: str, hint: str) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), sha256, progress=False)
    except (OSError, RuntimeError) as error:
        reason = quoted((str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(f"{path.name} is not in {path.parent} and cannot be downloaded: {reason} "
                        f"({hint})") from None  # fmt: skip
