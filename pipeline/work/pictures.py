"""Pictures of what a flow draws: grids of samples, and paths from noise to image."""

from __future__ import annotations

import torch

from pipeline import artifacts, console
from pipeline.work import evaluation_job
from rfpp_core import rng
from rfpp_core.config.params import Params
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.solver_table import ADAPTIVE, row_name
from rfpp_core.sampling.solvers import trajectory
from rfpp_core.sampling.transfer import Transfer

SHOWN = 64  # images of a grid


def draw(flow: Flow, name: str, config: Params, more: evaluation_job.Plan = ()) -> None:
    """Writes sample grids per NFE and trajectories as PNG, of the same noise for every flow.

    Of a conditional flow, each row is of one class.  Of a flow between two sets of images they are
    translations, and source.png is what is translated.
    """
    key, folder = rng.subkey(config.seed, "pictures"), artifacts.samples(name)
    shown = max(SHOWN, 8 * min(flow.classes, 16))
    labels = torch.arange(shown) // 8 % flow.classes if flow.classes else None
    planned = evaluation_job.samplers(config.evaluate, flow, config.flows[name])
    for sampler, _ in (*planned, *more):
        if sampler.solver == ADAPTIVE:
            continue
        images = flow.from_noise_key(key, shown, sampler, labels)
        file = f"{row_name(evaluation_job.label_of(sampler), sampler.nfe)}.png"
        console.save_grid(images, folder / file, 8)
    if isinstance(flow, Transfer):
        console.save_grid(flow.states(key, torch.arange(shown)), folder / "source.png", 8)
    z = flow.states(key, torch.arange(8)).to(flow.device)
    y = None if labels is None else (torch.arange(8) % flow.classes).to(flow.device)
    with torch.inference_mode():
        grid = SamplerConfig("euler", 10).plan(flow.start)[0]
        states = list(trajectory(flow.field, flow.start * z, grid, "euler", "full", y))
    strip = torch.stack(states, dim=1).flatten(0, 1)
    console.save_grid(strip, folder / "trajectory.png", len(states))
