"""Stage ``preflight``: all that the whole run will need, looked at before any compute.

What is missing is listed at once.  The out, data/preflight.txt, always has the same content, so a
change of params runs this stage again and nothing for its sake.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from pipeline.stages import prepare
from pipeline.work import pair_job, perceptual_net, workdir
from pipeline.workers import pool
from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.config.params import Params, Training, load
from rfpp_core.errors import UserError, quoted
from rfpp_core.evaluation import inception
from rfpp_core.images.decode import CorruptImage, Pixels
from rfpp_core.images.sources import Source
from rfpp_core.storage import files
from rfpp_core.storage.zarr_arrays import check_shard
from rfpp_core.training import perceptual

DONE = Path("data/preflight.txt")


def run() -> None:
    config = load()
    workdir.check_builds()
    missing = list(problems(config))
    if len(missing) == 1:
        raise UserError(missing[0])
    if missing:
        lines = "".join(f"\n  {i}. {line}" for i, line in enumerate(missing, 1))
        raise UserError(f"{len(missing)} things are missing for this run:{lines}")
    files.write_atomic(DONE, lambda part: part.write_text("all that the run needs was there\n"))


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
    if config.pretrain.source == "import":
        yield from _failures(lambda: _checkpoint(config))
    for section, kind in trainings(config):
        yield from _of_training(section, kind)


def trainings(config: Params) -> list[tuple[Training, str]]:
    """The trainings that the run will really do, with the names of their sections."""
    found: list[tuple[Training, str]] = []
    if config.pretrain.source == "train":
        found.append((config.pretrain, "pretrain"))
    if config.rounds:
        found.append((config.reflow, "reflow"))
    if config.finetunes:
        found.append((config.finetune, "finetune"))
    return found


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
    classes = len(source.classes) or int(config.network.conditional)

    def network() -> None:
        with torch.device("meta"):
            build.field(build.architecture(config.network, shape, classes))

    yield from _failures(network)
    for section, kind in trainings(config):
        native = section.loss.is_perceptual and section.loss.perceptual == "lpips"
        side = section.loss.resize or shape[-1]
        if native and side < perceptual.LEAST_SIDE:
            yield (f"{kind}.loss.resize gives LPIPS images of {side} pixels; VGG16 needs at least "
                   f"{perceptual.LEAST_SIDE}")  # fmt: skip
    if config.rounds and config.generate.source == "import":
        yield from _failures(lambda: pair_job.imported(config.generate))
    for used, made in ((config.rounds, config.generate), (config.finetunes, config.invert)):
        if used:
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


def _without_labels(config: Params) -> Iterator[str]:
    needs = []
    if config.network.conditional:
        needs.append("network.conditional: true")
    if "classifier" in config.features.nets:
        needs.append("features.nets with classifier (inception or pixels need none)")
    for section, kind in trainings(config):
        if section.loss.is_perceptual and section.loss.perceptual == "classifier":
            needs.append(f"{kind}.loss.perceptual: classifier")
    if needs:
        yield (f"the images have no labels, needed by {' and '.join(needs)}; put them in a folder "
               f"per class, or name a CSV of name,label rows in dataset.labels")  # fmt: skip


def _of_training(section: Training, kind: str) -> Iterator[str]:
    if section.loss.is_perceptual and section.loss.perceptual == "lpips":
        yield from _failures(lambda: perceptual.LPIPS(perceptual_net.vgg(section.loss)))
    on_cpu = runtime.device().type == "cpu"
    if section.compile and on_cpu and not (shutil.which("c++") or shutil.which("g++")):
        yield f"{kind}.compile on a CPU needs a C++ compiler; install g++ or set compile: false"


def _inception(config: Params) -> None:
    section = config.features
    device = torch.device("cpu")
    inception.load(section.inception_path, section.inception_sha256, False, device)


def _checkpoint(config: Params) -> None:
    path, want = Path(config.pretrain.checkpoint or ""), config.pretrain.checkpoint_sha256
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint to import (pretrain.checkpoint)")
    if (found := files.sha256(path)) != want:
        raise UserError(f"{path} has sha256 {found}, not {want} (pretrain.checkpoint_sha256)")


def _disk(config: Params, values: int, images: int) -> Iterator[str]:
    """A byte a value of a pair, five of an inverted one, whose noise is stored; what is staged
    already need not be made."""
    made = config.generate.n * len(config.rounds) if config.generate.source == "teacher" else 0
    pairs = workdir.work() / "pairs"
    there = sum(file.stat().st_size for file in pairs.rglob("*") if file.is_file())
    need = values * (made + 5 * images * len(config.finetunes)) - there
    free = shutil.disk_usage(workdir.work()).free
    if need > free:
        yield (f"the pairs take up to {need / 1e9:.1f} GB and {workdir.work()} has {free / 1e9:.1f} "
               f"GB left; free some or lower generate.n")  # fmt: skip


def _failures(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield str(error)


if __name__ == "__main__":
    workdir.main(run)
