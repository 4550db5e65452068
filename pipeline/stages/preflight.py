"""Stage ``preflight``: all that the whole run will need, looked at before any compute.

What is missing is listed at once.  The out, data/preflight.txt, always has the same content, so a
change of params runs this stage again and nothing for its sake.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial

import torch

from pipeline import artifacts, console, settings
from pipeline.stages import prepare
from pipeline.work import pair_job, perceptual_net
from pipeline.workers import pool
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.network import NetworkRow
from rfpp_core.config.params import Params, load
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError, quoted
from rfpp_core.evaluation import inception
from rfpp_core.images.decode import CorruptImage, Pixels
from rfpp_core.images.sources import Source
from rfpp_core.storage import files
from rfpp_core.storage.zarr_arrays import check_shard
from rfpp_core.training import perceptual
from rfpp_core.training.trainer import check_share


def run() -> None:
    config = load()
    check_builds()
    missing = list(problems(config))
    if len(missing) == 1:
        raise UserError(missing[0])
    if missing:
        lines = "".join(f"\n  {i}. {line}" for i, line in enumerate(missing, 1))
        raise UserError(f"{len(missing)} things are missing for this run:{lines}")
    files.write_atomic(artifacts.PREFLIGHT, lambda part: part.write_text("all that the run needs was there\n"))


def problems(config: Params) -> Iterator[str]:
    """A line for each thing that the run lacks."""
    yield from _failures(runtime.device)
    yield from _failures(pool.devices)
    sources: list[Source] = []
    yield from _failures(lambda: sources.append(prepare.source_or_prepared(config.dataset)))
    if sources:
        yield from _of_images(config, sources[0])
    if any(name.startswith("inception") for name in config.features.nets):
        yield from _failures(lambda: _inception(config))
    for name, row in config.networks.items():
        if row.checkpoint:
            yield from _failures(partial(_checkpoint, name, row))
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
    """The recipes of the trainings that the run will really do."""
    return {row.recipe: recipe for name, row in config.flows.items()
            if (recipe := config.recipe_of(name)).steps}  # fmt: skip


def _of_images(config: Params, source: Source) -> Iterator[str]:
    if not source.classes:
        yield from _without_labels(config)
    elif len(source.classes) == 1 and "classifier" in config.features.nets:
        yield ("all images have one label, which teaches the classifier of features.nets nothing; "
               "use inception or pixels, or give more classes")  # fmt: skip
    held_out = prepare.held_out_of(config.dataset, source)
    labels = source.labels[~held_out], source.labels[held_out]
    yield from prepare.problems(config, source, *labels)
    try:
        shape = _first(source, config.dataset.skip_corrupt).shape
    except UserError as error:
        yield str(error)
        return
    for name, row in config.networks.items():
        yield from _failures(partial(_network, name, row, shape, len(source.classes)))
    for name, recipe in recipes_used(config).items():
        side = recipe.loss.resize or shape[-1]
        if recipe.loss.perceptual == "lpips" and side < perceptual.LEAST_SIDE:
            yield (f"recipes.{name}.loss.resize gives LPIPS images of {side} pixels; VGG16 needs "
                   f"at least {perceptual.LEAST_SIDE}")  # fmt: skip
    for name, made in config.pairs.items():
        if made.source == "import":
            yield from _of_imported_pairs(config, name)
        else:
            yield from _failures(partial(check_shard, shape, made.shard))
    yield from _disk(config, int(torch.Size(shape).numel()), len(source.keys))


def _first(source: Source, skip_corrupt: bool) -> Pixels:
    """The first image; of corrupt ones that are to be skipped, at most ten are passed over."""
    for i, name in enumerate(source.keys[: 10 if skip_corrupt else 1]):
        try:
            return source.load(i)
        except CorruptImage as error:
            why = f"{quoted(name)} is not a readable image ({error})"
    raise UserError(f"{why}, nor are those after it; mend or remove them" if skip_corrupt else
                    f"{why}; remove it or set dataset.skip_corrupt: true")  # fmt: skip


def _network(name: str, row: NetworkRow, shape: tuple[int, ...], classes: int) -> None:
    """Builds a network without memory.  A missing label is said by :func:`_without_labels`."""
    try:
        with torch.device("meta"):
            build.field(build.architecture(row, shape, classes or int(row.conditional)))
    except UserError as error:
        raise UserError(f"networks.{name}: {error}") from None


def _of_imported_pairs(config: Params, name: str) -> Iterator[str]:
    try:
        n = pair_job.imported(name, config.pairs[name]).n
    except UserError as error:
        yield str(error)
        return
    for flow, row in config.flows.items():
        recipe = config.recipe_of(flow)
        if row.data == name and recipe.steps and recipe.batch > n:
            yield (f"recipes.{row.recipe}.batch ({recipe.batch}) is larger than the set of pairs "
                   f"(pairs.{name} has {n})")  # fmt: skip


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
    yield from _failures(lambda: check_share(build.train_config(recipe, 0), processes))


def _inception(config: Params) -> None:
    section = config.features
    device = torch.device("cpu")
    inception.load(section.inception_path, section.inception_sha256, False, device)


def _checkpoint(name: str, row: NetworkRow) -> None:
    path = artifacts.located(row.checkpoint or "")
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint to import (networks.{name})")
    if (found := files.sha256(path)) != row.sha256:
        raise UserError(f"{path} has sha256 {found}, not {row.sha256} (networks.{name}.sha256)")


def _disk(config: Params, values: int, images: int) -> Iterator[str]:
    """A byte a value of a pair, five of an inverted one, whose noise is stored; what is staged
    already need not be made."""
    made = sum(row.n or 0 for row in config.pairs.values())
    inverted = sum(row.source == "images" for row in config.pairs.values())
    pairs = artifacts.work() / "pairs"
    there = sum(file.stat().st_size for file in pairs.rglob("*") if file.is_file())
    need = values * (made + 5 * images * inverted) - there
    free = shutil.disk_usage(artifacts.work()).free
    if need > free:
        yield (f"the pairs take up to {need / 1e9:.1f} GB and {artifacts.work()} has {free / 1e9:.1f} "
               f"GB left; free some or lower n in pairs")  # fmt: skip


def _failures(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield str(error)


if __name__ == "__main__":
    console.main(run)
