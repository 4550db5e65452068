"""Straightening on a grid: what it is without loss, and that training makes it small."""

import dataclasses
from itertools import pairwise

import torch

from pipeline.work import training_job
from rfpp_core import rng
from rfpp_core.config import build, objective, params
from rfpp_core.config.network import Network
from rfpp_core.config.recipe import Recipe
from rfpp_core.images import loader
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.sampling import grids
from rfpp_core.sampling.solvers import solve, trajectory
from rfpp_core.training import losses, segments
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.trainer import TrainState, train
from tests.helpers import randomised, tiny_arch
from tests.unit.config.rows import changed, flow, refused

TIMES = (1.0, 0.7, 0.3, 0.0)
PARTS = (3, 4, 3)
TERM = losses.Term("l2", losses.l2)


def curved(x, t, y=None):
    return torch.cos(3 * x) + t.reshape(-1, *(1,) * (x.ndim - 1)) ** 2


def batch(n=6, labels=None, value=0.0):
    return Batch(torch.full((n, 1, 4, 4), value), torch.arange(n), labels)


def loss_of(net, frozen=curved, times=TIMES, parts=PARTS, data=None):
    data = data or batch()
    of = segments.straightening(independent, frozen, times, parts, TERM)
    return of(net, data, 0, StepRNG(0, 0, len(data.x)))["l2"]


def test_the_paths_are_eulers_on_the_fine_grid():
    z = torch.randn(5, 1, 4, 4)
    states = list(segments.knots(curved, z, TIMES, PARTS, None))
    fine = list(trajectory(curved, z, grids.uniform(10), "euler", "full"))
    for state, k in zip(states, (0, 3, 7, 10), strict=True):
        torch.testing.assert_close(state, fine[k], rtol=0, atol=1e-5)


def test_a_net_that_knows_the_chords_ends_where_the_fine_path_ends():
    """The loss is 0, and K Euler steps telescope to the fine end."""
    z = independent(batch(), StepRNG(0, 0, 6)).z
    states = list(segments.knots(curved, z, TIMES, PARTS, None))
    chords = [(b - a) / (s - t) for (a, b), (t, s)
              in zip(pairwise(states), pairwise(TIMES), strict=True)]  # fmt: skip

    def knowing(x, t, y=None):
        return chords[min(range(3), key=lambda k: abs(TIMES[k] - float(t[0])))]

    assert float(loss_of(knowing).max()) < 1e-12
    grid = torch.tensor(TIMES, dtype=torch.float64)
    found = solve(knowing, z, grid, "euler", "full").x
    torch.testing.assert_close(found, states[-1], rtol=0, atol=1e-5)
    assert float(loss_of(curved).min()) > 1e-3


def test_the_loss_is_the_mean_square_over_segments():
    z = independent(batch(), StepRNG(0, 0, 6)).z
    states = list(segments.knots(curved, z, TIMES, PARTS, None))
    chords = [(b - a) / (s - t) for (a, b), (t, s)
              in zip(pairwise(states), pairwise(TIMES), strict=True)]  # fmt: skip
    expected = torch.stack([chord.square().mean((1, 2, 3)) for chord in chords]).mean(0)
    torch.testing.assert_close(loss_of(lambda x, t, y=None: 0 * x), expected)


def test_a_flow_has_no_loss_on_its_own_fine_grid_or_if_it_is_straight():
    times = tuple(grids.uniform(5).tolist())
    assert float(loss_of(curved, times=times, parts=(1,) * 5).max()) < 1e-10
    straight = lambda x, t, y=None: torch.full_like(x, 0.7)  # noqa: E731
    assert float(loss_of(straight, frozen=straight).max()) < 1e-10


def test_images_play_no_part_and_labels_reach_both():
    seen = []

    def frozen(x, t, y=None):
        seen.append(y)
        return curved(x, t)

    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    one, two = (loss_of(frozen, frozen, data=batch(6, labels, value)) for value in (0.0, 0.9))
    assert torch.equal(one, two)
    assert len(seen) == 2 * (10 + 3)
    assert all(torch.equal(y, labels) for y in seen)


def bent():
    """A net whose paths are far from straight."""
    return randomised(randomised(randomised(build.field(tiny_arch())), 1), 2)


def test_training_brings_few_steps_nearer_to_the_fine_end():
    """On noise that was not trained on; the frozen flow keeps its weights."""
    torch.set_num_threads(1)
    recipe = Recipe.model_validate({
        "objective": "segments", "segments": {"times": [1.0, 0.5], "fine": 6}, "steps": 60,
        "batch": 16, "lr": 1e-3, "warmup": 5, "log_every": 60, "ema": 0.8, "threads": 1,
        "loss": {"name": "l2"},
    })  # fmt: skip
    start, frozen = (bent() for _ in range(2))
    frozen.requires_grad_(False).eval()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    config = dataclasses.replace(build.train_config(recipe, 5), steps=60)
    state = TrainState(start, config, torch.device("cpu"))
    source = loader.batches(images, None, 16, 1, torch.device("cpu"), 0)
    list(train(state, source, objective.loss(recipe, independent, frozen=frozen), config))

    z = rng.normal(99, torch.arange(64), (1, 8, 8))
    coarse = grids.custom([1.0, 0.5])
    with torch.inference_mode():
        end = solve(frozen, z, grids.uniform(6), "euler", "full").x
        errors = [float((solve(net, z, coarse, "euler", "full").x - end).square().mean())
                  for net in (frozen, state.average.eval())]  # fmt: skip
    assert errors[1] < errors[0] / 2
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


SEGMENTS = {"objective": "segments", "segments": {"times": [1.0, 0.6, 0.25], "fine": 40},
            "steps": 50, "log_every": 50, "loss": {"name": "l2"}}  # fmt: skip


def with_recipe(start="flow1", **more):
    return changed(("recipes.straighten", {**SEGMENTS, **more}),
                   ("flows.few", flow("straighten", "images", start=start)))  # fmt: skip


def test_params_of_segments():
    found = params.parse(with_recipe()).recipes["straighten"]
    assert found.segments.whole == (1.0, 0.6, 0.25, 0.0)
    assert found.segments.parts == (16, 14, 10)
    assert found.forwards == 40 + 3 * 3
    assert found.frozen_start
    assert Recipe().forwards == 3
    for times in ([], [0.9, 0.5], [1.0, 1.0], [1.0, 0.2, 0.4], [1.0, -0.1]):
        said = refused(with_recipe(segments={"times": times}))
        assert "segments.times must be times falling from 1" in said
    said = refused(with_recipe(label_dropout=0.1))
    assert "label_dropout 0" in said
    said = refused(with_recipe(start="unet"))
    assert "flows.few straightens the paths of its start, unet, which is not trained here" in said


def test_other_trainings_do_not_depend_on_its_code():
    arch = build.architecture_of(build.architecture(Network(), (1, 8, 8), 0))
    used = [set(training_job.code_of(recipe, arch, ["independent"]))
            for recipe in (Recipe(), Recipe.model_validate(SEGMENTS))]  # fmt: skip
    assert used[1] - used[0] == {"rfpp_core.training.segments"}
