"""``rfpp methods``: the systems that rows can express, and what shows that they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer


class Method(NamedTuple):
    """A system of the literature as rows of ``params.yaml``.

    Attributes:
        system: its name.
        paper: where it is published: ``arXiv:`` and a number, or ``OpenReview:`` and a name.
        page: its page in docs/methods, without ``.md``.
        does: what is implemented.
        rows: options and presets that run it.
        tests: files that prove it, below ``tests/``.
        not_claimed: what a reader might expect and is not there, or not shown.
    """

    system: str
    paper: str
    page: str
    does: str
    rows: str
    tests: tuple[str, ...]
    not_claimed: str


METHODS = (
    Method(
        "RF++", "arXiv:2405.20320", "rfpp",
        "2-RF with U-shaped times, pseudo-Huber and LPIPS losses, EDM teachers, inverted real "
        "images, anchored sampler; a share of times at t = 1 is ours",
        "recipes: times, loss; preset: digits, cifar10, afhq64, ffhq64, imagenet64",
        ("unit/training/test_times.py", "unit/training/test_losses.py",
         "unit/interop/test_foreign.py"),
        "the published FIDs: the presets have not been run to the end with this code",
    ),
    Method(
        "Rectified flow", "arXiv:2209.03003", "rectified_flow",
        "reflow in any number of rounds, distillation into one and into k steps, the one-step "
        "encoder, transport cost and straightness of every round",
        "pairs and flows: a row a round; recipes: times fixed at 1 or 0, or of a grid",
        ("unit/evaluation/test_rectified_flow.py", "unit/training/test_distillation.py"),
        "the published FIDs",
    ),
    Method(
        "Domain transfer by rectified flow", "arXiv:2209.03003", "transfer",
        "flows from one set of images to another and back, reflow on their translations, a loss "
        "by the features of a classifier, evaluation against the target",
        "flows: domains; pairs: source: domain; recipes: objective: features; "
        "rfpp transfer; preset: transfer",
        ("unit/evaluation/test_rectified_flow.py", "unit/work/test_transfer.py",
         "unit/training/test_features.py"),
        "the paper's photographs, or that content is kept",
    ),
    Method(
        "SlimFlow", "arXiv:2407.12718", "slimflow",
        "annealing reflow into a smaller network, mirrored pairs, flow-guided distillation, and "
        "parameters, multiply-accumulates and speed of every flow",
        "networks: a smaller row; recipes: anneal, flip, objective: flow_guided, two_step",
        ("unit/training/test_annealed.py", "unit/training/test_flipped.py",
         "unit/training/test_guided.py", "unit/evaluation/test_network_size.py"),
        "the published FIDs and ablations",
    ),
    Method(
        "Rectified Diffusion", "arXiv:2410.07303", "rectified_diffusion",
        "variance-preserving paths, predictions of noise, image or velocity, losses in each "
        "space, rectifying by matched pairs with a shuffled control, the phased variant",
        "networks: precond: plain, path, prediction; recipes: objective: diffusion or phased, "
        "loss.space, shuffled",
        ("unit/model/test_prediction.py", "unit/training/test_spaces.py",
         "unit/training/test_phased.py", "unit/training/test_rectification.py"),
        "numbers of Stable Diffusion, text, consistency distillation",
    ),
    Method(
        "Flow maps: MeanFlow, consistency models", "arXiv:2505.13447", "flow_maps",
        "networks with an end time, trained on images alone, on stored pairs, or on a teacher's "
        "velocity (arXiv:2506.14603); derivative forward-mode or by differences",
        "recipes: objective: flow_map, flow_map; solver: flow-map",
        ("unit/model/test_flow_map.py", "unit/training/test_flow_map.py"),
        "the published FIDs",
    ),
    Method(
        "DANSM, and minibatch OT", "OpenReview:RaR3ETzyKp", "dansm",
        "greedy matching of noise with images from pools that are used up, and the exact "
        "assignment of up to 1,024; pools by class and process, exact resume",
        "recipes: coupling: dansm or ot, match; rfpp coupling measures both",
        ("unit/training/test_matched.py", "unit/work/test_matched_training.py",
         "unit/evaluation/test_coupling_metrics.py"),
        "faster or better training",
    ),
    Method(
        "BOSS", "arXiv:2312.16414", "boss",
        "the grid of K Euler steps of least cost by a dynamic programme, one matrix for every "
        "K; straightening on a grid",
        "evaluate: grid_search; recipes: objective: segments; rfpp grid",
        ("unit/sampling/test_grid_search.py", "unit/work/test_grid_job.py",
         "unit/training/test_segments.py"),
        "optimality beyond its own cost, or a better distance",
    ),
    Method(
        "RF-Solver, RF-Edit, and FireFlow", "arXiv:2411.04746", "rf_solver",
        "the midpoint rule under the name of the release, its finite difference with a step of "
        "one's own, and FireFlow (arXiv:2412.07517), which reuses a velocity; translation that "
        "shares attention values with the inversion",
        "solver: rf-solver, taylor:0.01 or fireflow; rfpp translate --share 3",
        ("unit/sampling/test_rf_solver.py", "unit/sampling/test_value_sharing.py",
         "unit/model/test_attention_values.py"),
        "its third order, a gain at few evaluations, or edits of photographs or by text",
    ),
)  # fmt: skip


def methods(
    tests: Annotated[bool, typer.Option("--tests", help="Name the tests, too.")] = False,
) -> None:
    """Lists the systems that rows of params.yaml can express."""
    print("\n\n".join("\n".join(_lines(method, tests)) for method in METHODS))


def _lines(method: Method, tests: bool) -> Iterator[str]:
    yield f"{method.system} ({method.paper})"
    yield f"  does         {method.does}"
    yield f"  rows         {method.rows}"
    yield f"  not claimed  {method.not_claimed}"
    yield f"  page         docs/methods/{method.page}.md"
    if tests:
        yield f"  tests        {', '.join(f'tests/{name}' for name in method.tests)}"
