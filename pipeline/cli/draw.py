"""``rfpp sample``: draws images from a model file, or from a training that still runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.artifacts import DEFAULT_MODEL
from rfpp_core import runtime
from rfpp_core.errors import UserError

if TYPE_CHECKING:
    import torch

    from rfpp_core.sampling.flow import Flow
    from rfpp_core.sampling.sampler import SamplerConfig

GridOption = Annotated[
    str,
    typer.Option(help="uniform, karras, vp, vp_sd, times such as 1,0.8, or a file of `rfpp grid`"),
]
ROW, ROWS = 8, 16  # columns and most rows of a conditional flow's grid, without --n


@runtime.enough_memory("lower --n, free the device or set RFPP_DEVICE=cpu")
def sample(
    model: Annotated[
        Path, typer.Option(help="model file, or a folder of .work/train or a state in it")
    ] = DEFAULT_MODEL,
    nfe: Annotated[int, typer.Option(help="network evaluations (NFE) per image")] = 1,
    n: Annotated[
        int | None, typer.Option(help="number of images [64; of a conditional flow 8 per class]")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    label: Annotated[
        int | None, typer.Option(help="class of the images [a row per class]")
    ] = None,
    guidance: Annotated[float, typer.Option(help="guidance scale; 1 for none")] = 1.0,
    solver: Annotated[
        str | None,
        typer.Option(
            help="euler, heun, midpoint (or rf-solver), fireflow, anchored, edm-heun, rk45 or "
            "flow-map [euler up to 8 NFE, else heun; of a flow map flow-map]"
        ),
    ] = None,
    grid: GridOption = "uniform",
    out: Annotated[
        Path, typer.Option(help="file to write: .png for a grid, .npz for arrays")
    ] = Path("grid.png"),
) -> None:
    """Draws images from a model file.

    With the same seed, image i starts from the same noise for every flow.  An .npz also holds
    labels, -1 for none.
    """
    import numpy as np

    from pipeline.console import save_arrays, save_grid
    from rfpp_core.images.pixels import to_uint8
    from rfpp_core.sampling.transfer import Transfer

    if out.suffix not in (".png", ".npz"):
        raise UserError(f"{out} must end in .png or .npz")
    flow = open_flow(model, runtime.device())
    if isinstance(flow, Transfer):
        raise UserError(f"{model}: {flow.refusal}")
    rows = out.suffix == ".png" and label is None and flow.classes > 0
    n = n if n is not None else ROW * min(flow.classes, ROWS) if rows else 64
    chosen = sampler(flow, nfe, solver, grid, guidance)
    if n * 16 * math.prod(flow.shape) > runtime.memory():  # float32, and a copy
        raise UserError(f"--n is {n}: so many images do not fit into memory; draw fewer at a "
                        f"time, with other seeds")  # fmt: skip
    columns = max(1, -(-n // flow.classes) if rows else round(max(n, 0) ** 0.5))
    labels = flow.labels(n, seed, None if label is None else [label])
    if rows:
        labels = [i // columns for i in range(n)]
    images = flow.sample(n, nfe, seed, labels, chosen)
    if out.suffix == ".png":
        save_grid(images, out, columns)
    else:
        given = np.full(n, -1) if labels is None else np.array(labels)
        save_arrays(out, {"images": to_uint8(images).numpy(), "labels": given})
    cost = f"{chosen.forwards} NFE" if chosen.forwards else "RK45's own NFE"
    print(f"{n} images at {cost} from {model} -> {out}")


def sampler(flow: Flow, nfe: int, solver: str | None, grid: str, guidance: float) -> SamplerConfig:
    """The sampler of the options; the grid of a grid file is for Euler, unless --solver is given.

    Raises:
        UserError: saying what is wrong and what is allowed.
    """
    from rfpp_core.config import grid_file
    from rfpp_core.sampling.flow import sampler_for
    from rfpp_core.sampling.solver_table import ADAPTIVE

    if not grid.endswith(".json"):
        return sampler_for(flow, nfe, solver, grid, guidance)
    solver = solver or "euler"
    if solver == ADAPTIVE:
        raise UserError(f"{ADAPTIVE} chooses its own times; leave out --grid or --solver")
    times = grid_file.times_for(grid_file.read(Path(grid), flow.digest), solver, nfe)
    return sampler_for(flow, nfe, solver, ",".join(map(repr, times)), guidance)


def open_flow(path: Path, device: torch.device) -> Flow:
    """The flow of a model file, or the average of a training's state (of a folder, the newest).

    Raises:
        UserError: if there is none.
    """
    from rfpp_core.config import build
    from rfpp_core.sampling.flow_map import as_map
    from rfpp_core.sampling.transfer import as_transfer
    from rfpp_core.storage import checkpoint

    if not path.is_dir() and not (path.name.startswith("state-") and _identity(path).exists()):
        return build.load_flow(path, device)
    state = checkpoint.load_state(path, 10**9) if path.is_dir() else checkpoint.load(path)
    if state is None:
        raise UserError(f"{path} holds no training state (state-*.safetensors); name a model file "
                        f"or a folder of .work")  # fmt: skip
    tensors = {name[4:]: t for name, t in state.tensors.items() if name.startswith("ema.")}
    metadata = {"provenance": {"stage": "state"}, **_described(path)}
    loaded = checkpoint.Loaded(tensors, metadata, checkpoint.digest(tensors))
    return as_transfer(as_map(build.flow_of(loaded, path, device)))


def _identity(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "identity.json"


def _described(path: Path) -> dict[str, Any]:
    """The architecture of a training, and its domains if it has any, from the identity beside its
    states."""
    try:
        document = json.loads(_identity(path).read_text())
        found, (data, *_) = document["architecture"], document.get("data", [{}])
        domains = {"domains": data["domains"]} if "domains" in data else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        found, domains = None, {}
    if not isinstance(found, dict):
        raise UserError(f"{_identity(path)} names no architecture; it is written beside the "
                        f"states of a training")  # fmt: skip
    return {"architecture": found, **domains}
