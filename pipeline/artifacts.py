"""Where everything lies: the outs of stages, and the work directory.

Work lies in ``<root>/.work/<kind>/<identity>/``.  The root is ``DVC_ROOT`` if the current
directory lies under it (so ``dvc exp run --temp`` finds the work of the main tree), else the
nearest parent with ``.dvc``.
"""

from __future__ import annotations

import os
from pathlib import Path

PARAMS = Path("params.yaml")
FINGERPRINT = Path("data/source.json")
PREFLIGHT = Path("data/preflight.txt")
IMAGES = Path("data/images.zarr")
SUMMARY = Path("data/summary.json")
FEATURES = Path("models/features.safetensors")
REFERENCE = Path("data/reference.npz")
REPORT = Path("report")
CACHES = {"MPLCONFIGDIR": "matplotlib", "TORCH_HOME": "torch",
          "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}  # fmt: skip
DEFAULT_MODEL = Path("models/flow2.safetensors")  # of the command line


def pairs(name: str) -> Path:
    """The pair store of a row of ``pairs``."""
    return Path(f"data/{name}.zarr")


def model(name: str) -> Path:
    """The model file of a row of ``networks`` or ``flows``."""
    return Path(f"models/{name}.safetensors")


def loss_curve(flow: str) -> Path:
    return Path(f"curves/loss/{flow}.csv")


def table(flow: str) -> Path:
    """Every number of a flow with its standard deviation."""
    return Path(f"curves/distance/{flow}.csv")


def metrics(flow: str) -> Path:
    return Path(f"metrics/{flow}.json")


def samples(flow: str) -> Path:
    return Path(f"samples/{flow}")


def grid(flow: str) -> Path:
    """The grids that were searched for a flow, if any were."""
    return samples(flow) / "grid.json"


def root() -> Path:
    """Where ``.work`` is."""
    here = Path.cwd().resolve()
    if (given := os.environ.get("DVC_ROOT")) and here.is_relative_to(Path(given).resolve()):
        return Path(given).resolve()
    return next((p for p in (here, *here.parents) if (p / ".dvc").is_dir()), here)


def work() -> Path:
    """The work directory, made if need be."""
    path = root() / ".work"
    path.mkdir(exist_ok=True)
    return path


def located(path: str) -> Path:
    """A path of the params: ``~`` is expanded, and a relative one is looked up in the main tree
    where an experiment runs in a copy of it (``dvc exp run --temp``)."""
    given = Path(os.path.expanduser(path))  # as it is if there is no such user
    return given if given.is_absolute() or os.path.exists(given) else root() / given


def located_if_given(path: str | None) -> str | None:
    """:func:`located` of a path of the params that may be null."""
    return None if path is None else str(located(path))


def library_caches() -> None:
    """Points the caches of matplotlib, torch hub and compiled code below ``.work`` unless they are
    set; a resumed run that compiles finds its kernels there."""
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(work() / folder))
