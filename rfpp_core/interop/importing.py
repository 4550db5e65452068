"""Converts a foreign checkpoint of one of EDM's networks into a model file.

An EDM denoiser is a rectified flow without further training (RF++, arXiv 2405.20320, prop. 1).  It
was trained on noise up to sigma = 80, so its first time is 80/81.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from rfpp_core.config import build
from rfpp_core.config.network import Network
from rfpp_core.config.params import explained
from rfpp_core.errors import UserError, quoted
from rfpp_core.interop import foreign
from rfpp_core.storage import checkpoint

EDM_START = 80 / 81
LICENCE = ("weights published by NVlabs are under CC BY-NC-SA 4.0: no commercial use, and models "
           "made from them share that licence")  # fmt: skip
BARE = ("a state dict does not state its preconditioning: EDM's with sigma_data 0.5 is assumed; "
        "weights of VP or VE preconditioning fit the network as well, but give noise")  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]


def convert(
    source: Path,
    target: Path,
    arch: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    start: float = EDM_START,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes the weights of ``source`` as the model file ``target``; returns its metadata.

    Memory: one tensor beside what is mapped of the file.

    Args:
        source: a state dict, an NVlabs pickle or safetensors, this project's included.
        target: the model file.
        arch: the architecture document they must fit; None to infer it.
        sha256: digest that the file must have.
        start: first time of the flow: 80/81 for EDM, 1 for a rectified flow in EDM's form.
        say: receives what had to be assumed.

    Raises:
        UserError: if the file is missing, corrupted, hostile or of another kind, or its names and
            shapes are not the network's, with the list of differences.
    """
    found = foreign.read(source)
    if sha256 and found.digest != sha256:
        raise UserError(f"{source} has sha256 {found.digest}, not {sha256} as the params say")
    kind, sigma_data = (found.hints.get(name) for name in ("class_name", "sigma_data"))
    if kind not in (None, "EDMPrecond") or sigma_data not in (None, 0.5):
        raise UserError(
            f"{source} is preconditioned as {quoted(kind)}, sigma_data {quoted(sigma_data)}; only "
            f"EDMPrecond with 0.5 is read (NVlabs' edm-*.pkl, not baseline-*.pkl)"
        )
    ours = checkpoint.stated_metadata(source, found.tensors) if found.kind == "safetensors" else {}
    shapes = found.shapes
    if arch is None:
        arch = ours.get("architecture") or infer(shapes, str(source))
    if not isinstance(arch, Mapping):
        raise UserError(f"{source} has an architecture that is no mapping in its metadata")
    with torch.device("meta"):
        net = build.field(arch)
    want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    checkpoint.check_fit(want, shapes, str(source))
    if kind is None and not ours and arch.get("precond") == "edm":
        say(BARE)
    start, inherited = _stated(ours, start, source)
    metadata = {
        "architecture": dict(arch),
        "start": start,
        "provenance": {
            "stage": "import",
            "source": {"sha256": found.digest, "kind": found.kind, "hints": found.hints},
            "budget": 0,
            "budget_with_ancestors": inherited,  # 0 where that of its training is unknown
        },
    }
    ordered = checkpoint.Ordered(found.tensors, list(want), dtype=torch.float32)
    foreign.write_safetensors(target, ordered, checkpoint.metadata_of(ordered, metadata))
    return metadata


def _stated(ours: Mapping[str, Any], start: float, source: Path) -> tuple[float, int]:
    """First time and budget that a file of this project states; otherwise ``start`` and 0."""
    if not ours:
        return start, 0
    try:
        first = float(ours.get("start", 1.0))
        budget = int(ours.get("provenance", {}).get("budget_with_ancestors", 0))
    except (TypeError, ValueError, AttributeError, OverflowError):
        first = budget = -1
    if not 0 < first <= 1 or budget < 0:
        raise UserError(
            f"{source} has a start or a budget in its metadata that this project does not write"
        )
    return first, budget


def infer(shapes: Shapes, where: str) -> dict[str, Any]:
    """The architecture document of EDM's networks from names and shapes.

    Raises:
        UserError: if they are not those of one.
    """
    level = re.compile(r"model\.enc\.(\d{1,5})x\1_block0\.norm0\.weight")
    sides = sorted({int(at[1]) for at in map(level.fullmatch, shapes) if at}, reverse=True)
    try:
        document = _inferred(shapes, sides)
        if (
            document["arch"] == "adm"
            and f"model.dec.{sides[-1]}x{sides[-1]}_in0.qkv.weight" not in shapes
        ):
            raise UserError(
                f"{where} is an ADM whose coarsest level has no attention (EDM's leaves it out "
                f"below 64 channels); only ADM that attends there is read"
            )
        return document
    except ValidationError as error:
        raise UserError(
            f"{where} holds none of EDM's networks ({quoted(explained(error), 200)})"
        ) from None
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f"{where} holds none of EDM's networks (no {quoted(error)}); allowed are NCSN++, "
            f"DDPM++ and ADM, with names such as model.enc.32x32_conv.weight"
        ) from None


def _inferred(shapes: Shapes, sides: list[int]) -> dict[str, Any]:
    stem = shapes[f"model.enc.{sides[0]}x{sides[0]}_conv.weight"]
    width = shapes["model.map_layer0.weight"][1]
    adm, ncsnpp = "model.out_conv.weight" in shapes, "model.map_noise.freqs" in shapes
    channels = width // 2 if ncsnpp else width
    widths = [shapes[f"model.enc.{side}x{side}_block0.conv1.weight"][0] for side in sides]
    labels, augment = (shapes.get(f"model.map_{name}.weight", (0, 0))[1]
                       for name in ("label", "augment"))  # fmt: skip
    first = f"model.enc.{sides[0]}x{sides[0]}_block"
    network = Network(
        arch="adm" if adm else "ncsnpp" if ncsnpp else "ddpmpp",
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=sum(name.startswith(first) and name.endswith("norm0.weight") for name in shapes),
        attention_resolutions=tuple(
            side for side in sides if f"model.enc.{side}x{side}_block0.qkv.weight" in shapes
        ),
        augment=augment,
        conditional="model.map_label.weight" in shapes,
        precond="edm",
        sigma_data=0.5,
    )
    return build.architecture(network, (stem[1], sides[0], sides[0]), labels)
