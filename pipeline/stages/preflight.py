"""Stage ``preflight``: everything that the run needs, checked before any compute.

All that is missing is listed at once.  The out, data/preflight.txt, always has the same content:
a change of params runs this stage again, and by that alone no other stage.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch

from pipeline import artifacts, console, settings
from pipeline.stages import prepare
from pipeline.work import domain_job, pair_job, perceptual_net
from pipeline.workers import pool
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.params import Params, load
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import Several, UserError, quoted
from rfpp_core.evaluation import inception
from rfpp_core.images.decode import CorruptImage
from rfpp_core.images.sources import Source
from rfpp_core.storage import files
from rfpp_core.storage.zarr_arrays import check_shard
from rfpp_core.training import perceptual
from rfpp_core.training.trainer import check_share

Shape: TypeAlias = tuple[int, ...]  # (C, H, W)
DONE = "all that the run needs was there\n"


def run() -> None:
    config = load()
    check_builds()
    missing = list(problems(config))
    if len(missing) == 1:
        raise UserError(missing[0])
    if missing:
        raise Several(f"{len(missing)} things are missing for this run:", missing)
    files.write_atomic(artifacts.PREFLIGHT, lambda part: part.write_text(DONE))


def problems(config: Params) -> Iterator[str]:
    """A line for each thing that the run lacks."""
    yield from _failures(runtime.device)
    yield from _failures(pool.devices)
    sources: list[Source] = []
    shapes: list[Shape] = []
    yield from _failures(lambda: sources.append(prepare.source_or_prepared(config.dataset)))
    if sources:
        source = sources[0]
        yield from _of_labels(config, source)
        yield from _failures(lambda: shapes.append(_first(source, config.dataset.skip_corrupt)))
        if shapes:
            yield from _of_shape(config, shapes[0], len(source.classes))
            yield from _disk(config, math.prod(shapes[0]), len(source.keys))
    if any(name.startswith("inception") for name in config.features.nets):
        yield from _failures(lambda: _inception(config))
    for name, row in config.networks.items():
        if row.checkpoint:
            yield from _failures(partial(_checkpoint, name, row))
    for name, pairs in config.pairs.items():
        if pairs.source == "import":
            yield from _of_imported_pairs(config, name, shapes)
    for name, recipe in recipes_used(config).items():
        yield from _of_recipe(name, recipe)


def check_builds() -> None:
    """Refuses a torch and a torchvision of different builds before anything is computed."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise UserError(
            f"torchvision does not fit torch {torch.__version__} ({str(error).splitlines()[0]}); "
            f"install both in one command: pip install torch torchvision"
        ) from None


def recipes_used(config: Params) -> dict[str, Recipe]:
    """The recipes that a flow is trained by, in at least one step."""
    return {row.recipe: recipe for name, row in config.flows.items()
            if (recipe := config.recipe_of(name)).steps}  # fmt: skip


def _of_labels(config: Params, source: Source) -> Iterator[str]:
    if not source.classes:
        yield from _without_labels(config)
    elif len(source.classes) == 1 and "classifier" in config.features.nets:
        yield ("all images have one label, which teaches the classifier of features.nets nothing; "
               "use inception or pixels, or give more classes")  # fmt: skip
    held_out = prepare.held_out_of(config.dataset, source)
    labels = source.labels[~held_out], source.labels[held_out]
    yield from prepare.problems(config, source, *labels)
    yield from domain_job.problems(config, len(source.classes), *labels)


def _of_shape(config: Params, shape: Shape, classes: int) -> Iterator[str]:
    for name, row in config.networks.items():
        yield from _failures(partial(_network, row, shape, classes), f"networks.{name}: ")
    for name, recipe in recipes_used(config).items():
        side = recipe.loss.resize or shape[-1]
        if recipe.loss.perceptual == "lpips" and side < perceptual.LEAST_SIDE:
            yield (f"recipes.{name}.loss.resize gives LPIPS images of {side} pixels; VGG16 needs "
                   f"at least {perceptual.LEAST_SIDE}")  # fmt: skip
    for name, made in config.pairs.items():
        if made.source != "import":
            yield from _failures(partial(check_shard, shape, made.shard), f"pairs.{name}: ")


def _first(source: Source, skip_corrupt: bool) -> Shape:
    """The shape of the first image; at most ten corrupt ones are skipped."""
    for i, name in enumerate(source.keys[: 10 if skip_corrupt else 1]):
        try:
            return source.load(i).shape
        except CorruptImage as error:
            why = f"{quoted(name)} is not a readable image ({error})"
    raise UserError(f"{why}, nor are those after it; fix or remove them" if skip_corrupt else
                    f"{why}; remove it or set dataset.skip_corrupt: true")  # fmt: skip


def _network(row: NetworkRow, shape: Shape, classes: int) -> None:
    """Builds a network without memory.  Missing labels are reported by :func:`_without_labels`."""
    with torch.device("meta"):
        build.field(build.architecture(row, shape, classes or int(row.conditional)))


def _of_imported_pairs(config: Params, name: str, shapes: Sequence[Shape]) -> Iterator[str]:
    """``shapes`` has the shape of the images, if they can be read."""
    try:
        store = pair_job.imported(name, config.pairs[name])
    except UserError as error:
        yield str(error)
        return
    for shape in shapes:
        if store.spec.shape != shape:
            yield (f"pairs.{name} holds images of {_by(store.spec.shape)}, and those of dataset "
                   f"are {_by(shape)}; import others, or change dataset")  # fmt: skip
    flows = [name_of for name_of, row in config.flows.items() if row.data == name]
    for recipe, batch in {config.flows[flow].recipe: config.recipe_of(flow).batch
                          for flow in flows if config.recipe_of(flow).steps}.items():  # fmt: skip
        if batch > store.n:
            yield (f"recipes.{recipe}.batch ({batch}) is larger than the set of pairs "
                   f"(pairs.{name} has {store.n})")  # fmt: skip


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _without_labels(config: Params) -> Iterator[str]:
    needs = [f"networks.{name} with conditional: true"
             for name, row in config.networks.items() if row.conditional]  # fmt: skip
    if "classifier" in config.features.nets:
        needs.append("features.nets with classifier (inception or pixels need none)")
    needs += [f"recipes.{name} with loss.perceptual: classifier"
              for name, recipe in recipes_used(config).items()
              if recipe.loss.perceptual == "classifier"]  # fmt: skip
    if needs:
        yield (f"the images have no labels, needed by {' and '.join(needs)}; put them in a folder "
               f"per class, or name a CSV of name,label rows in dataset.labels")  # fmt: skip


def _of_recipe(name: str, recipe: Recipe) -> Iterator[str]:
    if recipe.loss.perceptual == "lpips":
        yield from _failures(lambda: perceptual_net.lpips(recipe.loss))
    on_cpu = runtime.device().type == "cpu"
    if recipe.compile and on_cpu and not (shutil.which("c++") or shutil.which("g++")):
        yield (f"recipes.{name}.compile on a CPU needs a C++ compiler; install g++ or set "
               f"compile: false")  # fmt: skip
    processes = settings.processes()
    if recipe.batch % processes:
        yield (f"recipes.{name}.batch is {recipe.batch}, which RFPP_PROCESSES ({processes}) "
               f"processes do not share evenly")  # fmt: skip
    share = partial(check_share, build.train_config(recipe, 0), processes)
    yield from _failures(share, f"recipes.{name}: ")


def _inception(config: Params) -> None:
    section = config.features
    path = artifacts.located_if_given(section.inception_path)
    inception.load(path, section.inception_sha256, False, torch.device("cpu"))


def _checkpoint(name: str, row: NetworkRow) -> None:
    path = artifacts.located(row.checkpoint or "")
    if not os.path.isfile(path):
        raise UserError(f"{quoted(path)} is missing: the checkpoint to import (networks.{name})")
    try:
        found = files.sha256(path)
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be read: {error.strerror}") from None
    if found != row.sha256:
        raise UserError(f"{quoted(path)} has sha256 {found}, not {row.sha256} "
                        f"(networks.{name}.sha256)")  # fmt: skip


def _disk(config: Params, values: int, images: int) -> Iterator[str]:
    """A pair takes a byte a value, and one whose noise is stored (of images that are inverted or
    translated) five; pairs that are already staged are subtracted."""
    made = sum(row.n or 0 for row in config.pairs.values())
    inverted = sum(row.source in ("images", "domain") for row in config.pairs.values())
    pairs = artifacts.work() / "pairs"
    there = sum(file.stat().st_size for file in pairs.rglob("*") if file.is_file())
    need = values * (made + 5 * images * inverted) - there
    free = shutil.disk_usage(artifacts.work()).free
    if need > free:
        yield (f"the pairs take up to {need / 1e9:.1f} GB and {artifacts.work()} has "
               f"{free / 1e9:.1f} GB left; free some or lower n in pairs")  # fmt: skip


def _failures(check: Callable[[], object], of: str = "") -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield f"{of}{error}"


if __name__ == "__main__":
    console.main(run)
