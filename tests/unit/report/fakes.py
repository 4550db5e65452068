"""Runs that never ran: the files that a report reads, with numbers made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline import artifacts, console
from pipeline.stages import prepare
from rfpp_core.config import params
from rfpp_core.config.params import Params
from rfpp_core.evaluation.distances import DISTANCES, columns
from rfpp_core.images import store as image_store
from rfpp_core.images.sources import Source
from rfpp_core.storage import checkpoint, files

FLOOR, HELD_OUT = 0.5, 0.8  # distances of the real rows
NET = {"arch": "small_unet", "channels": 8, "precond": "velocity", "conditional": False}
PRETRAIN = {
    "steps": 100,
    "batch": 16,
    "times": {"distribution": "uniform"},
    "loss": {"name": "l2"},
}
REFLOW = {"steps": 200, "batch": 8, "loss": {"name": "pseudo_huber"}}
PAIRS = {"teacher": "flow1", "n": 2000, "solver": "midpoint", "nfe": 18}
FLOW1 = {"recipe": "pretrain", "data": "images", "mix": "images", "start": "unet"}
FLOW2 = {"recipe": "reflow", "data": "pairs2", "mix": "images", "start": "flow1"}
TWO: dict[str, Any] = {
    "networks": {"unet": NET},
    "recipes": {"pretrain": PRETRAIN, "reflow": REFLOW},
    "pairs": {"pairs2": PAIRS},
    "flows": {"flow1": FLOW1, "flow2": FLOW2},
    "evaluate": {"n": 100, "seeds": 2, "nfe": [1, 2, 8], "many_nfe": 35},
}


def changed(**sections: Any) -> dict[str, Any]:
    """The run of two flows with other sections."""
    return {**TWO, **sections}


def one() -> dict[str, Any]:
    """A single flow, trained on images."""
    return changed(pairs={}, flows={"flow1": FLOW1}, recipes={"pretrain": PRETRAIN})


def several(n: int = 6) -> dict[str, Any]:
    """A teacher and n - 1 flows that learned from it with three budgets."""
    recipes = {f"way{i}": {**REFLOW, "steps": 100 * (1 + i % 3),
                           "times": {"distribution": "fixed" if i == 1 else "u_shape"}}
               for i in range(1, n)}  # fmt: skip
    flows = {f"way{i}_with_a_long_name": {**FLOW2, "recipe": f"way{i}"} for i in range(1, n)}
    return changed(recipes={"pretrain": PRETRAIN, **recipes}, flows={"flow1": FLOW1, **flows})


def conditional() -> dict[str, Any]:
    """Both flows see labels."""
    return changed(networks={"unet": {**NET, "conditional": True}},
                   dataset={"name": "folder", "channels": 3, "resolution": 32})  # fmt: skip


def imported() -> dict[str, Any]:
    """The first flow is a checkpoint as it is, which starts below t = 1."""
    edm = {"arch": "ncsnpp", "checkpoint": "edm.pkl", "sha256": "0" * 64}
    return changed(networks={"unet": edm}, recipes={"pretrain": {"steps": 0}, "reflow": {
                       **REFLOW, "loss": {"name": "pseudo_huber", "perceptual": "lpips"}}},
                   features={"nets": ["inception"]},
                   dataset={"name": "cifar10", "channels": 3})  # fmt: skip


def several_nets() -> dict[str, Any]:
    """Three feature nets, and a row of an adaptive solver."""
    return changed(features={"nets": ["classifier", "inception", "pixels"]},
                   evaluate={**TWO["evaluate"], "adaptive": True})  # fmt: skip


def unlabelled() -> dict[str, Any]:
    """Images of 64 pixels without labels."""
    return changed(dataset={"name": "folder", "labels": "none", "channels": 3, "resolution": 64},
                   features={"nets": ["pixels"]})  # fmt: skip


CASES = {
    "one flow": one,
    "two flows": changed,
    "six flows": several,
    "ten flows": lambda: several(10),
    "conditional": conditional,
    "imported teacher": imported,
    "several feature nets": several_nets,
    "without labels": unlabelled,
}


def make(document: dict[str, Any], classes: tuple[str, ...] | None = None) -> Params:
    """Writes all that a report reads into the current directory."""
    Path(".dvc").mkdir()
    artifacts.PARAMS.write_text(yaml.safe_dump(document, sort_keys=False))
    config = params.load()
    if classes is None:
        classes = () if config.dataset.labels == "none" else ("zero", "one", "two")
    section = config.dataset
    side = section.resolution or (32 if section.name == "cifar10" else 8)
    shape = (section.channels, side, side)
    _images(config, shape, classes)
    _reference(config)
    for i, flow in enumerate(config.flows):
        _flow(flow, i, config, shape, classes)
    return config


def _images(config: Params, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    n = 60
    labels = np.arange(n) % len(classes) if classes else np.full(n, -1)
    source = Source([str(i) for i in range(n)], labels.astype(np.int64), classes, _drawn(shape, n))
    held_out = np.arange(n) % 5 == 4
    image_store.write(artifacts.IMAGES, source, held_out, name=config.dataset.name,
                      source_fingerprint={})  # fmt: skip
    facts = prepare.summary(config.dataset, source, labels[~held_out], labels[held_out],
                            list(shape), 0)  # fmt: skip
    files.write_json(artifacts.SUMMARY, facts)


def _drawn(shape: tuple[int, ...], n: int) -> Any:
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    return lambda i: images[i]


def _reference(config: Params) -> None:
    arrays = {}
    for net in config.features.nets:
        arrays[f"{net}/floor"] = np.array([[FLOOR, 0.7, np.nan, np.nan, np.nan]] * 2)
        arrays[f"{net}/held_out_row"] = np.array([[HELD_OUT, 0.2, 0.001, 0.9, 0.8]] * 2)
    np.savez(artifacts.REFERENCE, **arrays)
    metadata = {"held_out_accuracy": 0.97} if "classifier" in config.features.nets else {}
    checkpoint.save(artifacts.FEATURES, {}, metadata)


def distance(i: int, nfe: int) -> float:
    """Of flow i: the teacher's excess is 0.5 at 35 evaluations, those of its pupils 2 / nfe."""
    return FLOOR + (17.5 if i == 0 else 2) / nfe


def _flow(flow: str, i: int, config: Params, shape: tuple[int, ...], classes: Any) -> None:
    recipe, section = config.recipe_of(flow), config.evaluate
    sees = len(classes) if config.network_of(flow).conditional else 0
    training = 3 * recipe.steps * recipe.batch
    budget = training + (36_000 if config.teacher_of(flow) else 0)
    provenance = {"budget": budget, "budget_with_ancestors": budget + 1000 * (i > 0)}
    metadata = {"architecture": {"shape": list(shape), "classes": sees}, "provenance": provenance}
    if config.is_imported(flow):
        metadata["start"] = 80 / 81
    checkpoint.save(artifacts.model(flow), {"w": torch.zeros(1234)}, metadata)
    rows = [_row(config, i, nfe, section.solver, section.seeds, sees) for nfe in section.nfe]
    rows.append(_row(config, i, section.many_nfe, "heun", 1, sees))
    if section.adaptive:
        rows.append(_row(config, i, 61, "rk45", 1, sees))
    files.write_csv(artifacts.table(flow), rows)
    _losses(flow, config)
    files.write_json(artifacts.metrics(flow), {
        "straightness": 0.1 / (1 + i), "eps_constancy": 0.05, "step_gap": 0.2,
        "round_trip": 0.01, "images_per_second_nfe1": 1000 + i,
        "noise": {"norm2": 0.9, "norm2_std": 0.1, "correlation": -0.02},
        "budget": budget, "budget_with_ancestors": provenance["budget_with_ancestors"],
    })  # fmt: skip
    _pictures(flow, rows, shape, sees)


def _row(config: Params, i: int, nfe: int, solver: str, seeds: int, sees: int) -> dict[str, Any]:
    row: dict[str, Any] = {"nfe": nfe, "solver": solver, "n": config.evaluate.n, "seeds": seeds,
                           "distance": distance(i, nfe)}  # fmt: skip
    for net in config.features.nets:
        measured = (distance(i, nfe), distance(i, nfe) + 0.2, 0.012, 0.9, 0.4)
        for name, value in zip(columns(net), measured, strict=True):
            row |= {name: value, f"{name}_std": 0.01 if seeds > 1 else ""}
        assert DISTANCES[net] in row
    if sees:
        row |= {"agreement": 0.88, "agreement_std": 0.01 if seeds > 1 else ""}
    return row


def _losses(flow: str, config: Params) -> None:
    recipe = config.recipe_of(flow)
    rows: list[dict[str, Any]] = [{"step": 0, "loss": ""}]
    if recipe.steps:
        names = [
            recipe.loss.name,
            *([recipe.loss.perceptual] * (recipe.loss.perceptual != "none")),
        ]
        rows = [
            {"step": step, "loss": len(names) / step, **dict.fromkeys(names, 1 / step),
             "lr": 1e-3, "grad_norm": 1}
            for step in range(50, recipe.steps + 1, 50)
        ]  # fmt: skip
    files.write_csv(artifacts.loss_curve(flow), rows)


def _pictures(flow: str, rows: list[dict[str, Any]], shape: tuple[int, ...], sees: int) -> None:
    folder, shown = artifacts.samples(flow), max(64, 8 * min(sees, 16))
    folder.mkdir(parents=True)
    images = torch.rand((shown, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    for row in rows:
        if row["solver"] != "rk45":
            console.save_grid(images, folder / f"nfe{row['nfe']}.png", 8)
    console.save_grid(images[:8].repeat_interleave(11, 0), folder / "trajectory.png", 11)
