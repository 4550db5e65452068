"""What the report says in words: of the run, of its images, of its feature nets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.report import tables
from pipeline.report.numbers import plural, short
from pipeline.report.results import Results
from rfpp_core.config.dataset import Dataset
from rfpp_core.images.listing import counted

SHOWN = 40  # classes that are listed
MODES = {"1": "black and white", "L": "grey", "LA": "grey with transparency", "P": "palette",
         "PA": "palette with transparency", "RGB": "colour", "RGBA": "colour with transparency",
         "CMYK": "colour for print"}  # fmt: skip

NETS = {
    "classifier": "a classifier trained here on the labels, hence fd_classifier and not FID",
    "inception": "clean-fid's Inception with legacy_tensorflow resizing, as in published FIDs",
    "inception_clean": "clean-fid's Inception with its own resizing; not to be set beside FIDs "
    "that were resized otherwise",
    "pixels": "A last resort: averaged pixels see neither detail nor content",
}


class Lead(NamedTuple):
    """The numbers of the first paragraph; those of a teacher are None where there is none."""

    flow: str
    few: int
    many: int
    distance: float
    floor: float
    ratio: float  # of excesses over the floor, to the teacher's at many evaluations
    own: float  # the flow's distance at many evaluations
    teacher: str | None
    of_teacher: tuple[float, float]  # at few and at many
    straighter: float


def lead(found: Results) -> Lead:
    """What the last flow reaches at its fewest evaluations, beside its teacher."""
    config, flow, net = found.config, found.flows[-1], found.config.features.nets[0]
    few, many, teacher = (
        min(config.evaluate.nfe),
        config.evaluate.many_nfe,
        config.teacher_of(flow),
    )
    distance = found.at(flow, net, few)
    other = teacher or flow
    bent, straight = (found.metrics[name]["straightness"] or math.nan for name in (other, flow))
    return Lead(
        flow=flow, few=few, many=many, distance=distance, floor=found.floor(net, flow),
        ratio=tables.excess(distance, flow, net, found), own=found.at(flow, net, many),
        teacher=teacher, of_teacher=(found.at(other, net, few), found.at(other, net, many)),
        straighter=bent / straight,
    )  # fmt: skip


def subject(section: Dataset) -> str:
    """What the images are called."""
    names = {"digits": "handwritten digits", "cifar10": "CIFAR-10"}
    return names.get(section.name, f"the images of {section.path}")


def images(found: Results) -> list[tuple[str, str]]:
    """What the real images are: a name and a sentence each."""
    summary, config = found.summary, found.config.dataset
    channels, height, width = summary["shape"]
    facts = [
        ("Images", f"{summary['train']:,} to train on, {summary['held_out']:,} held out "
                   f"({_split(summary, config)})"),
        ("As trained on", f"{width} × {height} pixels, {'grey' if channels == 1 else 'RGB'}"),
        ("As found", _found(summary)),
        ("Left out", _left_out(summary)),
    ]  # fmt: skip
    if changes := "; ".join(_changes(summary)):
        facts.append(("Changed", changes))
    if summary["grey"] == summary["train"] + summary["held_out"] and channels == 3:
        facts.append(("Hint", "all images are grey: dataset.channels: 1 takes a third of the "
                              "values"))  # fmt: skip
    return facts


def _split(summary: dict[str, Any], config: Dataset) -> str:
    if summary["split"] == "given":
        return "the set's own split; only the first part is trained on"
    return f"{config.held_out:.0%} of each class, drawn by dataset.seed"


def _found(summary: dict[str, Any]) -> str:
    modes = sorted(summary["modes"].items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{n:,} {MODES.get(mode, mode)}" for mode, n in modes)
    sizes = summary["sizes"]
    least, most, common = (_by(sizes["least"]), _by(sizes["most"]), sizes["common"])
    if least == most:
        return f"{kinds}; all of {least} pixels"
    return (f"{kinds}; from {least} to {most} pixels, most often {_by(common['size'])} "
            f"({common['count']:,})")  # fmt: skip


def _left_out(summary: dict[str, Any]) -> str:
    parts = []
    if summary["skipped"]:
        parts.append(f"{plural(summary['skipped'], 'unreadable image')} skipped")
    if summary["ignored"]:
        parts.append(f"files that are no images: {counted(summary['ignored'])}")
    return "; ".join(parts) or "nothing"


def _changes(summary: dict[str, Any]) -> Iterator[str]:
    if n := summary["transparent"]:
        yield f"{n:,} with transparency, composited on {summary['background']}"
    if n := summary["animated"]:
        yield f"{n:,} with several frames, of which the first is taken"


def _by(size: list[int]) -> str:
    return " × ".join(map(str, size))


def classes(found: Results) -> list[tuple[str, str]]:
    """Class names with counts, the first of them; empty for images without labels."""
    return [(str(c["name"]), f"{c['train']:,} + {c['held_out']:,}")
            for c in found.summary["classes"][:SHOWN]]  # fmt: skip


def said_of(net: str, found: Results) -> list[str]:
    """What must be said beside the numbers of a feature net."""
    config = found.config
    said = [f"Features: {NETS[net]}." if net != "pixels" else f"{NETS[net]}."]
    if net == "classifier" and found.accuracy is not None:
        said.append(f"It names {found.accuracy:.1%} of the held-out images right.")
    dataset = config.dataset
    some = dataset.limit or dataset.name != "cifar10"  # others hold a part of the set out
    if net.startswith("inception") and (config.evaluate.n < 50_000 or some):
        said.append(f"Published FIDs take 50,000 samples and the whole training set; here they "
                    f"are {config.evaluate.n:,} and its training split.")  # fmt: skip
    knows = {"inception": "lpips", "inception_clean": "lpips", "classifier": "classifier"}
    trained = [config.recipe_of(flow) for flow in config.flows if config.recipe_of(flow).steps]
    if knows.get(net) in {recipe.loss.perceptual for recipe in trained}:
        shared = "ImageNet" if net.startswith("inception") else "the labels"
        said.append(f"The net of a training's loss and this one both know {shared}.")
    first = _first_teacher(found)
    best = found.at(first, net, config.evaluate.many_nfe)
    if best <= found.floor(net, first):
        said.append(f"The teacher reaches the floor ({short(best)}), so there is no excess to "
                    f"measure by.")  # fmt: skip
    return said


def _first_teacher(found: Results) -> str:
    last = found.flows[-1]
    return found.config.teacher_of(last) or last
