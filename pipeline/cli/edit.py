"""``rfpp transfer``, ``invert``, ``interpolate`` and ``translate``: a flow applied to images.

All take image files, folders or zips; images of any size are cut and resized to the flow's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from pipeline.artifacts import DEFAULT_MODEL
from pipeline.cli import draw
from pipeline.console import save_arrays, save_grid
from rfpp_core import runtime
from rfpp_core.errors import UserError
from rfpp_core.images import pixels, sources
from rfpp_core.sampling import value_sharing
from rfpp_core.sampling.flow import Flow, sampler_for, slerp
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.transfer import Transfer

Model = Annotated[Path, typer.Option(help="model file")]
Paths = Annotated[list[Path], typer.Argument(help="image files, folders or zips")]
Out = Annotated[Path, typer.Option(help="folder for the results")]
Nfe = Annotated[int, typer.Option(help="network evaluations (NFE) each way")]
Solver = Annotated[str, typer.Option(help="euler, midpoint, heun, fireflow, edm-heun or rk45")]
Label = Annotated[int | None, typer.Option(help="class of the images, for a conditional flow")]
OUT = Path("edited")
MOST = 1000  # images in a strip
enough_memory = runtime.enough_memory("give fewer images, free the device or set RFPP_DEVICE=cpu")


@enough_memory
def transfer(
    images: Paths, model: Model = DEFAULT_MODEL, out: Out = OUT, nfe: Nfe = 8,
    solver: Solver = "euler",
    backwards: Annotated[
        bool, typer.Option("--backwards", help="from the target domain to the source")
    ] = False,
) -> None:  # fmt: skip
    """Translates images from the source domain of a flow to its target.

    The flow must be one between two sets of images (`domains` in its row of params.yaml).  Writes
    images.npz, and strip.png with a row per image.
    """
    flow, x, sampler = _open(model, images, solver, nfe)
    if not isinstance(flow, Transfer):
        raise UserError(f"{model} starts from noise, not from images; name a flow with domains, "
                        f"or use `rfpp translate` between classes of a conditional "
                        f"flow")  # fmt: skip
    moved = flow.invert(x, sampler) if backwards else flow.decode(x, sampler)
    sides = ("target", "source") if backwards else ("source", "target")
    names = [", ".join(map(str, flow.domains[side])) for side in sides]
    save_arrays(out / "images.npz", {"images": pixels.to_uint8(moved).numpy(),
                                     "given": pixels.to_uint8(x).numpy()})  # fmt: skip
    save_grid(torch.stack((x, moved), 1).flatten(0, 1), out / "strip.png", 2)
    print(f"{len(x)} images from classes {names[0]} to {names[1]} -> {out}")


@enough_memory
def invert(
    images: Paths, model: Model = DEFAULT_MODEL, out: Out = OUT, nfe: Nfe = 8,
    solver: Solver = "euler", label: Label = None,
) -> None:  # fmt: skip
    """Inverts images to noise, and decodes it again.

    Writes noises.npz and strip.png: image, noise and reconstruction.
    """
    flow, x, sampler = _from_noise(model, images, solver, nfe)
    labels = _labels(label)
    z = flow.invert(x, sampler, labels)
    back = flow.decode(z, sampler, labels)
    _save_noise(out, z, label)
    save_grid(torch.stack((x, z / 3, back), 1).flatten(0, 1), out / "strip.png", 3)
    error = float((back - x).square().mean())
    print(f"{len(x)} images, {nfe} NFE each way: round-trip error {error:.4g}, noise variance "
          f"{float(z.var()):.4g} -> {out}")  # fmt: skip


@enough_memory
def interpolate(
    images: Paths, model: Model = DEFAULT_MODEL, out: Out = OUT, nfe: Nfe = 8,
    solver: Solver = "euler", label: Label = None,
    steps: Annotated[int, typer.Option(help="images in the strip, both ends included")] = 10,
) -> None:  # fmt: skip
    """Interpolates between the first two images.

    Their noise is interpolated spherically and decoded.  Writes strip.png and noises.npz.
    """
    flow, x, sampler = _from_noise(model, images, solver, nfe)
    if len(x) < 2 or not 2 <= steps <= MOST:
        raise UserError(f"interpolation takes two images and 2 to {MOST} steps; got {len(x)} and "
                        f"{steps}")  # fmt: skip
    a, b = flow.invert(x[:2], sampler, _labels(label))
    z = slerp(a, b, torch.linspace(0, 1, steps))
    save_grid(flow.decode(z, sampler, _labels(label)), out / "strip.png", steps)
    _save_noise(out, z, label)
    print(f"{steps} images between the first two -> {out}")


@enough_memory
def translate(
    images: Paths,
    source: Annotated[int, typer.Option("--from", help="class of the images")],
    target: Annotated[int, typer.Option("--to", help="class to translate them to")],
    model: Model = DEFAULT_MODEL, out: Out = OUT, nfe: Nfe = 8, solver: Solver = "euler",
    guidance: Annotated[
        float, typer.Option(help="guidance scale of the new class; 1 for none")
    ] = 1.0,
    share: Annotated[
        int, typer.Option(help="first steps that take attention values of the inversion (RF-Edit)")
    ] = 0,
) -> None:  # fmt: skip
    """Translates images of one class to another.

    They are inverted under one label and decoded under the other.  Writes strip.png, a row per
    image, and noises.npz.  With --share N, the first N steps of decoding take the attention
    values of the inversion, so as to keep more of an image (docs/methods/rf_solver.md).
    """
    flow, x, sampler = _open(model, images, solver, nfe)
    if not flow.classes:
        raise UserError(f"{model} was trained without labels (conditional: false in its network)")
    guided = sampler_for(flow, nfe, solver, guidance=guidance)
    if share:
        z, moved = value_sharing.translate(flow, x, source, target, guided, share)
    else:
        z = flow.invert(x, sampler, [source])
        moved = flow.decode(z, guided, [target])
    _save_noise(out, z, source)
    save_grid(torch.stack((x, moved), 1).flatten(0, 1), out / "strip.png", 2)
    print(f"{len(x)} images from class {source} to {target} -> {out}")
    if share:
        size = value_sharing.bytes_an_image(flow, guided, share)
        print(f"values of {share} steps shared, {size / 1e6:.3g} MB an image; mean square change "
              f"of the images {float((moved - x).square().mean()):.4g}")  # fmt: skip


def _from_noise(
    model: Path, paths: Sequence[Path], solver: str, nfe: int
) -> tuple[Flow, Tensor, SamplerConfig]:
    """:func:`_open` of a flow whose images have noise."""
    flow, x, sampler = _open(model, paths, solver, nfe)
    if isinstance(flow, Transfer):
        raise UserError(f"{model}: {flow.refusal}")
    return flow, x, sampler


def _open(
    model: Path, paths: Sequence[Path], solver: str, nfe: int
) -> tuple[Flow, Tensor, SamplerConfig]:
    flow = draw.open_flow(model, runtime.device())
    sampler = sampler_for(flow, nfe, solver)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give image files, folders or zips")
    channels, side, _ = flow.shape
    found = [image for path in paths for image in sources.images_at(path, channels, side)]
    return flow, pixels.to_float(torch.from_numpy(np.stack(found))), sampler


def _labels(label: int | None) -> list[int] | None:
    return None if label is None else [label]


def _save_noise(out: Path, z: Tensor, label: int | None) -> None:
    y = np.full(len(z), -1 if label is None else label)
    save_arrays(out / "noises.npz", {"noise": z.numpy(), "labels": y})
