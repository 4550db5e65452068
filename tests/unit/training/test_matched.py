"""Noise matched with images: pools, the two rules, resuming, parts, processes and classes."""

from __future__ import annotations

from itertools import islice, permutations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from rfpp_core.config import build, objective
from rfpp_core.config.recipe import Recipe
from rfpp_core.images import loader
from rfpp_core.images.loader import Batch
from rfpp_core.images.pixels import to_float
from rfpp_core.rng import StepRNG
from rfpp_core.runtime import Rank
from rfpp_core.training.couplings import matched
from rfpp_core.training.couplings.dansm import dansm
from rfpp_core.training.couplings.matched import Matched, Matching, Source, noise_of_pool
from rfpp_core.training.couplings.ot import assignment, ot
from rfpp_core.training.trainer import TrainState, train
from tests.helpers import tiny_arch

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (45, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, 3, (45,), generator=GENERATOR)
BATCH, SEED = 8, 5
RULES = pytest.mark.parametrize("rule", [dansm, ot])
CLASSES = pytest.mark.parametrize("labels", [None, LABELS], ids=["", "classes"])


def source(labels=None, rank=Rank()):  # noqa: B008
    return Source(IMAGES, labels, BATCH, rank)


def issued(coupling, steps, seed=SEED):
    """Images, noise and labels that a coupling gives in some steps; (steps, share, *) each."""
    found = []
    for step in steps:
        batch = next(coupling.source.batches(seed, step, CPU))
        share, rank = coupling.source.share, coupling.source.rank.rank
        draws = StepRNG(seed, step, BATCH, rank * share, (rank + 1) * share)
        found.append(coupling(batch, draws))
        assert torch.equal(found[-1].x, batch.x)
        assert found[-1].y is batch.y
    x, z, y = zip(*found, strict=True)
    return torch.stack(x), torch.stack(z), None if y[0] is None else torch.stack(y)


def slots(z, pool):
    """Which noise of a pool each row of z is."""
    hits = (z.flatten(1)[:, None] == pool.flatten(1)).all(-1)
    assert (hits.sum(1) == 1).all()
    return hits.float().argmax(1)


@RULES
@CLASSES
@pytest.mark.parametrize("size", [8, 24])
def test_each_noise_of_a_pool_goes_to_one_image(rule, labels, size):
    """Pool after pool; the next pool is other noise."""
    steps = size // BATCH
    _, z, _ = issued(Matched(source(labels), Matching(rule, size)), range(3 * steps))
    for k in range(3):
        pool = noise_of_pool(SEED, k, size, Rank(), IMAGES[:1])
        used = slots(z[k * steps : (k + 1) * steps].flatten(0, 1), pool)
        assert used.sort().values.tolist() == list(range(size))
    assert len(z.flatten(0, 1).unique(dim=0)) == 3 * size


def test_nearest_in_order_is_not_the_best_assignment():
    """Images 0 and 1, noises 0.6 and -1: in order 0.36 + 4, the other way round 0.16 + 1."""
    x, z = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.6], [-1.0]])

    def cost(rule, x):
        batch = Batch(x, torch.arange(2), None)
        [chosen] = rule([batch], z, None)
        return float((x - z[chosen]).square().sum())

    assert cost(dansm, x) == pytest.approx(4.36)
    assert cost(dansm, x.flip(0)) == pytest.approx(1.16)
    assert cost(ot, x) == cost(ot, x.flip(0)) == pytest.approx(1.16)


def split(x, y, size):
    labels = [None] * (len(x) // size) if y is None else y.split(size)
    return [Batch(part, torch.arange(size), label)
            for part, label in zip(x.split(size), labels, strict=True)]  # fmt: skip


@pytest.mark.parametrize("classes", [False, True])
def test_dansm_takes_the_nearest_noise_left_whatever_the_batch(classes):
    """Against a loop over differences, in float64; one Gram matrix or six give the same."""
    x, z = torch.randn(60, 3, 4, 4), torch.randn(60, 3, 4, 4)
    y = torch.randint(0, 4, (60,)) if classes else None
    of_noise = None if y is None else y[torch.randperm(60)]
    expected, left = [], list(range(60))
    for i in range(60):
        fitting = [j for j in left if y is None or y[i] == of_noise[j]]
        best = min(fitting, key=lambda j: float((x[i].double() - z[j].double()).square().sum()))
        expected.append(best)
        left.remove(best)
    for size in (60, 10, 1):
        found = torch.cat(list(dansm(split(x, y, size), z, of_noise)))
        assert found.tolist() == expected


@pytest.mark.parametrize("classes", [False, True])
def test_ot_is_the_best_of_all_permutations(classes):
    for _ in range(5):
        x, z = torch.randn(6, 1, 2, 2), torch.randn(6, 1, 2, 2)
        y = torch.tensor([0, 1, 1, 0, 1, 0]) if classes else None
        of_noise = torch.tensor([1, 1, 0, 0, 0, 1]) if classes else None
        fitting = [p for p in map(list, permutations(range(6)))
                   if y is None or torch.equal(of_noise[p], y)]  # fmt: skip
        best = min(fitting, key=lambda p: float((x - z[p]).square().sum()))
        assert torch.cat(list(ot(split(x, y, 2), z, of_noise))).tolist() == best


@RULES
def test_noise_of_another_class_is_never_taken(rule):
    """Of all noises, those of a class are as many as its images, and are settled by the labels
    alone: so the noise of every class is standard normal."""
    size = 24
    coupling = Matched(source(LABELS), Matching(rule, size))
    _, z, y = issued(coupling, range(size // BATCH))
    used = slots(z.flatten(0, 1), noise_of_pool(SEED, 0, size, Rank(), IMAGES[:1]))
    given = coupling.source.classes(SEED, 0, size // BATCH, CPU)
    assert torch.equal(given, y.flatten())  # of the labels alone, without an image
    assert torch.equal(given[used], y.flatten())
    assert len(given.unique()) == 3


def test_whole_pools_are_standard_normal_and_parts_of_them_are_not():
    """Mean square within 3 sigma of 1, sigma = sqrt(2 / (n d)).  The first half of each pool is
    nearer to the images than random noise: to drop the rest would be seen."""
    grey = Source(torch.full((64, 1, 4, 4), 128, dtype=torch.uint8), None, 32)
    found = Matched(grey, Matching(dansm, 128))
    z = torch.stack([found(Batch(torch.zeros(32, 1, 4, 4), torch.arange(32), None),
                           StepRNG(SEED, step, 32)).z for step in range(32)])  # fmt: skip
    square = z.double().square().flatten(2).mean((1, 2)).reshape(8, 4)  # pool, step
    assert float(square.mean()) == pytest.approx(1, abs=3 * (2 / (32 * 32 * 16)) ** 0.5)
    assert float(square[:, :2].mean()) < 1 - 9 * (2 / (16 * 32 * 16)) ** 0.5


@RULES
@CLASSES
@pytest.mark.parametrize("rank", [Rank(), Rank(1, 2)])
def test_the_noise_of_a_batch_is_matched_with_its_own_images(rule, labels, rank):
    """Of the second pool: the rule on the images, labels and noise of its steps."""
    coupling = Matched(source(labels, rank), Matching(rule, 24))
    steps, share = 24 // coupling.source.share, coupling.source.share
    x, z, y = issued(coupling, range(steps, 2 * steps))
    pool = noise_of_pool(SEED, 1, 24, rank, IMAGES[:1])
    batches = split(x.flatten(0, 1), None if y is None else y.flatten(), share)
    chosen = rule(batches, pool, None if y is None else y.flatten())
    for own, expected in zip(z, chosen, strict=True):
        assert torch.equal(own, pool[expected])


@RULES
@CLASSES
def test_the_noise_of_a_step_does_not_depend_on_the_steps_before(rule, labels):
    """Stepped through, begun at any step, or asked for backwards."""
    matching = Matching(rule, 24)
    _, whole, _ = issued(Matched(source(labels), matching), range(9))
    for step in range(9):
        assert torch.equal(issued(Matched(source(labels), matching), [step])[1][0], whole[step])
    order = [8, 3, 3, 4, 0, 7]
    _, jumped, _ = issued(Matched(source(labels), matching), order)
    assert torch.equal(jumped, whole[order])
    _, other, _ = issued(Matched(source(labels), matching), range(2), seed=SEED + 1)
    assert not torch.equal(other, whole[:2])


@pytest.mark.parametrize("parts", [2, 8])
@RULES
def test_parts_of_a_batch_get_the_noise_of_the_whole(rule, parts):
    _, whole, _ = issued(Matched(source(), Matching(rule, 24)), range(4))
    coupling, size = Matched(source(), Matching(rule, 24)), BATCH // parts
    for step in range(4):
        batch = next(coupling.source.batches(SEED, step, CPU))
        for i in range(0, BATCH, size):
            part = Batch(batch.x[i : i + size], batch.position[i : i + size], None)
            draws = StepRNG(SEED, step, BATCH, i, i + size)
            assert torch.equal(coupling(part, draws).z, whole[step, i : i + size])


@RULES
def test_each_process_has_a_pool_of_its_own_for_its_slices(rule):
    alone, _, _ = issued(Matched(source(), Matching(rule, 8)), range(4))
    both = [issued(Matched(source(rank=Rank(r, 2)), Matching(rule, 8)), range(4)) for r in (0, 1)]
    assert torch.equal(torch.cat([x for x, _, _ in both], 1), alone)
    noise = torch.cat([z.flatten(0, 1) for _, z, _ in both])
    assert len(noise.unique(dim=0)) == 2 * 4 * BATCH // 2
    pools = [noise_of_pool(SEED, k, 8, Rank(1, 2), IMAGES[:1]) for k in (0, 1)]
    slots(both[1][1].flatten(0, 1), torch.cat(pools))


def test_the_precision_of_the_network_does_not_change_what_is_matched():
    """In bfloat16 the distances would be rounded to steps of 1/128 of themselves."""
    x, z = torch.randn(64, 3, 8, 8).clamp(-1, 1), torch.randn(64, 3, 8, 8)
    plain = matched.squared_distances(x, z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matched.squared_distances(x, z), plain)
    expected = (x.double()[:, None] - z.double()).square().flatten(2).mean(2)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)


def test_noise_is_drawn_in_parts_that_do_not_matter(monkeypatch):
    whole = noise_of_pool(SEED, 2, 40, Rank(), IMAGES[:1])
    monkeypatch.setattr(matched, "DRAWN", 7)
    assert torch.equal(noise_of_pool(SEED, 2, 40, Rank(), IMAGES[:1]), whole)


RECIPE = Recipe(steps=8, batch=BATCH, warmup=3, log_every=1, dropout=0.2, threads=1)


def start(recipe, labels, seed=0):
    classes = 0 if labels is None else 3
    field = build.field(tiny_arch(classes), recipe.dropout, seed)
    return TrainState(field, build.train_config(recipe, SEED), CPU)


def go(state, recipe, labels, until=8):
    """Trains to a step; the reports."""
    torch.set_num_threads(1)
    config = build.train_config(recipe, SEED)
    loss = objective.loss(
        recipe, Matched(source(labels), objective.MATCHINGS[recipe.coupling](recipe))
    )
    batches = Source(IMAGES, labels, BATCH).batches(SEED, state.step, CPU)
    return list(islice(train(state, batches, loss, config), until - state.step))


@CLASSES
@pytest.mark.parametrize("coupling", ["dansm", "ot"])
def test_resuming_within_a_pool_is_bit_exact(coupling, labels):
    """Pools of 3 steps, left at steps within and between them."""
    recipe = RECIPE.model_copy(update={"coupling": coupling, "match": 3 * BATCH})
    whole = start(recipe, labels)
    reports = go(whole, recipe, labels)
    for j in (3, 5, 7):
        first = start(recipe, labels)
        parts = go(first, recipe, labels, until=j)
        state = start(recipe, labels, seed=99)
        state.restore({k: v.clone() for k, v in first.tensors().items()}, first.metadata())
        assert parts + go(state, recipe, labels) == reports
        for name, tensor in whole.tensors().items():
            assert torch.equal(tensor, state.tensors()[name]), name


def test_accumulated_parts_are_the_whole_batch():
    recipe = RECIPE.model_copy(update={"coupling": "dansm", "match": 24, "dropout": 0.0})
    parted = recipe.model_copy(update={"accumulate": 4})
    one, other = start(recipe, None), start(recipe, None)
    for a, b in zip(go(one, recipe, None), go(other, parted, None), strict=True):
        assert b.terms["pseudo_huber"] == pytest.approx(a.terms["pseudo_huber"], rel=1e-3)
    for name, p in one.net.state_dict().items():
        torch.testing.assert_close(other.net.state_dict()[name], p, rtol=1e-3, atol=2e-5)


def test_sizes_are_those_of_the_recipe_or_some_batches():
    for given, sizes in [({"batch": 16}, (128, 16)), ({"batch": 16, "match": 64}, (64, 64))]:
        found = [
            objective.MATCHINGS[name](Recipe(coupling=name, **given)) for name in ("dansm", "ot")
        ]
        assert found == [Matching(dansm, sizes[0]), Matching(ot, sizes[1])]


def gaussians(n):
    """Eight Gaussians of deviation 0.15 on a circle of radius 2, (n, 2)."""
    angle = torch.randint(0, 8, (n,)) * torch.pi / 4
    return 2 * torch.stack((angle.cos(), angle.sin()), 1) + 0.15 * torch.randn(n, 2)


def velocity_variance(x, z):
    """Variance, per value, of z - x given x_t at t = 1/2, by nearest neighbours of x_t."""
    v, at = (z - x).numpy(), ((x + z) / 2).numpy()
    _, near = cKDTree(at).query(at, k=2)
    return float(np.square(v - v[near[:, 1]]).mean() / 2)


def exact_variance(x_t):
    """The same of independent noise: v = 2 (x_t - x), with x a mixture of eight given x_t."""
    angle = torch.arange(8) * torch.pi / 4
    centres = 2 * torch.stack((angle.cos(), angle.sin()), 1)
    s2 = 0.15**2
    weights = torch.softmax(-(2 * x_t[:, None] - centres).square().sum(2) / 2 / (s2 + 1), 1)
    means = centres + s2 / (s2 + 1) * (2 * x_t[:, None] - centres)
    mean = (weights[..., None] * means).sum(1)
    spread = (weights * (means - mean[:, None]).square().sum(2)).sum(1) / 2 + s2 / (s2 + 1)
    return float(4 * spread.mean())


def test_matched_paths_of_eight_gaussians_hardly_cross():
    """What no network can learn of the velocity: below a fifth of that of independent noise."""
    x, z = gaussians(6400), torch.randn(6400, 2)
    plain = velocity_variance(x, z)
    assert plain == pytest.approx(exact_variance((x + z) / 2), rel=0.1)
    pools = zip(x.split(64), z.split(64), strict=True)
    dealt = [b[next(dansm(split(a, None, 64), b, None))] for a, b in pools]
    assert velocity_variance(x, torch.cat(dealt)) < 0.2 * plain
    best = [b[assignment(a, b)] for a, b in zip(x.split(64), z.split(64), strict=True)]
    assert velocity_variance(x, torch.cat(best)) < 0.2 * plain


def test_the_loss_of_matched_noise_is_lower():
    """By construction (its paths cross less); this says nothing of the images."""
    torch.set_num_threads(1)
    coarse = torch.rand(256, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    images = (255 * torch.nn.functional.interpolate(coarse, (8, 8))).to(torch.uint8)
    recipe = Recipe.model_validate({
        "steps": 40, "batch": 32, "lr": 4e-3, "log_every": 8, "threads": 1, "warmup": 10,
        "times": {"distribution": "uniform"}, "loss": {"name": "l2"},
    })  # fmt: skip
    last = {}
    for name, match in [("independent", 0), ("dansm", 256)]:
        config = build.train_config(recipe, SEED)
        state = TrainState(build.field(tiny_arch()), config, CPU)
        data = Source(images, None, 32)
        coupling = objective.COUPLINGS[name](recipe) if not match else Matched(
            data, Matching(dansm, match))  # fmt: skip
        reports = train(
            state, data.batches(SEED, 0, CPU), objective.loss(recipe, coupling), config
        )
        last[name] = list(reports)[-1].terms["l2"]
    assert last["dansm"] < last["independent"]


def test_batches_are_those_of_the_loader():
    """Also from a later step, and of a slice."""
    own = source(LABELS, Rank(1, 2))
    key = matched.subkey(SEED, "order")
    theirs = loader.batches(IMAGES, LABELS, BATCH, key, CPU, 6, Rank(1, 2))
    for a, b in islice(zip(own.batches(SEED, 6, CPU), theirs, strict=False), 5):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
        assert torch.equal(a.x, to_float(IMAGES[a.position]))
