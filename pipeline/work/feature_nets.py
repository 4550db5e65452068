"""The feature nets of the metrics, and their features of real images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import artifacts, console
from pipeline.work import identity
from rfpp_core import runtime
from rfpp_core.config import section as sections
from rfpp_core.config.evaluate import Evaluate, Features
from rfpp_core.errors import Corrupted, UserError
from rfpp_core.evaluation import inception
from rfpp_core.evaluation.classifier import Classifier
from rfpp_core.evaluation.extractors import Extract, pooled_pixels
from rfpp_core.evaluation.reference import ROWS, Real, real_of, real_rows
from rfpp_core.storage import checkpoint, files

CODE = {  # where each net is defined
    "classifier": identity.Name("rfpp_core.evaluation.classifier", "Classifier"),
    "pixels": identity.Name("rfpp_core.evaluation.extractors", "pooled_pixels"),
    "inception": identity.Name("rfpp_core.evaluation.inception", "load"),
    "inception_clean": identity.Name("rfpp_core.evaluation.inception", "load"),
}


def described(section: Features) -> dict[str, Any]:
    """The params that determine features: no paths."""
    return sections.described(section, {"inception_path"})


def net_digest(net: str, section: Features, weights: dict[str, Tensor]) -> str:
    """The digest of a feature net's weights; empty if it has none."""
    if net == "classifier":
        return checkpoint.digest(weights)
    if net.startswith("inception"):
        return section.inception_sha256 or inception.WEIGHTS.sha256
    return ""


def extractors(section: Features, classifier: Classifier | None) -> dict[str, Extract]:
    """The feature nets in the order of the params."""
    device = runtime.device()
    found: dict[str, Extract] = {}
    for name in section.nets:
        if name == "classifier":
            assert classifier is not None
            found[name] = classifier.of_uint8
        elif name == "pixels":
            console.warn("fd_pixels compares averaged pixels, neither detail nor content; prefer "
                         "inception or a classifier")  # fmt: skip
            found[name] = pooled_pixels
        else:
            path = artifacts.located_if_given(section.inception_path)
            clean = name == "inception_clean"
            found[name] = inception.load(path, section.inception_sha256, clean, device)
    return found


def reference_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file, each of which carries a checksum.

    Raises:
        UserError: if it is missing.
        Corrupted: if it is not what was written.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with ZipFile(path) as archive:
            why = f"{broken} has another checksum" if (broken := archive.testzip()) else ""
        if not why:
            with np.load(path) as opened:
                found = {name: opened[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro reference` makes it") from None
    except Exception as error:  # zipfile and NumPy raise many kinds at other bytes
        why = console.one_line(error)
    if why:
        raise Corrupted(f"{path} is corrupted ({why}); `dvc repro reference` rebuilds it", path)
    return found


def _real(arrays: Mapping[str, NDArray[Any]], net: str) -> Real:
    """Features of real images, where they are compared."""
    splits = (torch.from_numpy(arrays[f"{net}/{part}"]) for part in ("train", "held_out"))
    return real_of(*(features.to(runtime.device()) for features in splits))


class Reference:
    """The feature nets, and each one's features of real images."""

    def __init__(self, section: Features) -> None:
        tensors, metadata, _ = checkpoint.load(artifacts.FEATURES, "dvc repro reference")
        if metadata.get("features") != described(section):
            have = (metadata.get("features") or {}).get("nets", Features().nets)
            raise UserError(
                f"{artifacts.FEATURES} is of {', '.join(have)}, made with other features params "
                f"than now ({', '.join(section.nets)}); run `dvc repro reference`"
            )
        self.classifier = None
        if "classifier" in section.nets:
            channels, side, _ = metadata["shape"]
            self.classifier = Classifier(channels, metadata["classes"], side)
            checkpoint.load_into(self.classifier, tensors, str(artifacts.FEATURES))
            self.classifier.eval().to(runtime.device())
        self.extractors = extractors(section, self.classifier)
        parts = ("train", "held_out", *ROWS)
        names = [f"{net}/{part}" for net in section.nets for part in parts]
        arrays = reference_arrays(artifacts.REFERENCE, names)
        self.nets: dict[str, str] = {
            net: net_digest(net, section, tensors) for net in section.nets
        }
        self.real: dict[str, Real] = {net: _real(arrays, net) for net in section.nets}
        self.digests: dict[str, str] = {net: self._digest(net) for net in section.nets}
        self.rows: dict[str, dict[str, NDArray[Any]]] = {
            net: {row: arrays[f"{net}/{row}"] for row in ROWS} for net in section.nets
        }

    def restricted(
        self, train: NDArray[np.bool_], held_out: NDArray[np.bool_], of: Evaluate, seed: int
    ) -> Reference:
        """The same of some of the real images alone, with the rows of them.

        Args:
            train: which of the training images, (N,).
            held_out: which of the held-out ones.
            of: how many samples there are, and how often.
            seed: of the bootstraps.
        """
        found = copy.copy(self)
        found.real = {net: real_of(real.train[train], real.held_out[held_out])
                      for net, real in self.real.items()}  # fmt: skip
        found.digests = {net: found._digest(net) for net in self.nets}
        found.rows = {net: real_rows(real, of.n, of.seeds, of.neighbours, seed)
                      for net, real in found.real.items()}  # fmt: skip
        return found

    def _digest(self, net: str) -> str:
        """Digest of all that a distance in a feature net depends on, beside the samples."""
        real = [hashlib.sha256(part.cpu().numpy().tobytes()).hexdigest()
                for part in self.real[net][:2]]  # fmt: skip
        return files.digest([net, self.nets[net], *real])
