"""Flow-guided distillation: its two terms in closed form, what it costs, and what it gains."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rfpp_core.config import objective
from rfpp_core.config.recipe import Recipe
from rfpp_core.images.loader import Batch
from rfpp_core.model.path import like
from rfpp_core.rng import StepRNG
from rfpp_core.sampling.grids import custom
from rfpp_core.sampling.solvers import CallCounter, solve
from rfpp_core.training.couplings.paired import seeded
from rfpp_core.training.guided import two_steps
from tests.unit.training.straight import straight, transported

N, PAIRS = 64, seeded(7)
AT_1 = {"distribution": "fixed", "t": 1.0}


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(
        {"objective": "flow_guided", "times": AT_1, "loss": {"name": "l2"}, **changes}
    )


def batch(x: torch.Tensor | None = None, y: torch.Tensor | None = None) -> Batch:
    """A batch of pairs of the straight flow, unless other images are given."""
    at = torch.arange(N)
    z = PAIRS(Batch(torch.zeros(N, 1, 4, 4), at, None), StepRNG(0, 0, N)).z
    return Batch(transported(z) if x is None else x, at, y)


def terms(net, teacher, part: Batch, step: int = 3, **changes) -> dict[str, torch.Tensor]:
    loss = objective.loss(recipe(**changes), PAIRS, frozen=teacher)
    return loss(net, part, step, StepRNG(0, step, N))


def curved(speed: float):
    """``v = speed t`` whatever x is: by one step z - speed, by two z - speed (1 - t + t^2)."""
    return lambda x, t, y=None: torch.zeros_like(x) + like(speed * t, x)


@pytest.mark.parametrize("own", [True, False])
def test_both_terms_are_zero_for_a_student_that_equals_its_straight_teacher(own):
    found = terms(straight, straight, batch(), two_step={"own": own})
    assert set(found) == {"distil", "two_step"}
    for term in found.values():
        assert term.shape == (N,)
        assert float(term.max()) < 1e-10
    wrong = terms(curved(1.0), straight, batch(), two_step={"own": own})
    assert min(float(term.mean()) for term in wrong.values()) > 0.3


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_the_second_term_of_a_curved_flow_is_its_formula(t):
    """Student = teacher: the difference of one step and two is speed (t - t^2)."""
    between = {"low": t, "high": t}
    for own in (True, False):
        found = terms(curved(2.0), curved(2.0), batch(), two_step={**between, "own": own})
        expected = torch.full((N,), (2 * (t - t**2)) ** 2)
        torch.testing.assert_close(found["two_step"], expected, rtol=1e-4, atol=1e-6)


def test_the_first_of_the_two_steps_is_the_students_own_or_the_teachers():
    """Student 3 t, teacher t: own z - 3 (1 - t) - t^2, otherwise z - (1 - t) - t^2."""
    t = 0.5
    between = {"low": t, "high": t}
    for own, first in ((True, 3.0), (False, 1.0)):
        found = terms(curved(3.0), curved(1.0), batch(), two_step={**between, "own": own})
        apart = 3 - first * (1 - t) - t**2
        torch.testing.assert_close(found["two_step"], torch.full((N,), apart**2))


def test_times_between_the_steps_are_uniform_in_their_range():
    """By the formula of a curved flow, speed 1: the root of the term is t - t^2."""
    low, high = 0.5, 0.8  # where it falls with t
    roots = torch.cat([
        terms(curved(1.0), curved(1.0), batch(), step, two_step={"low": low, "high": high})[
            "two_step"] for step in range(20)
    ]).sqrt()  # fmt: skip
    t = 0.5 + (0.25 - roots).clamp(min=0).sqrt()
    assert float(t.min()) > low - 1e-3
    assert float(t.max()) < high + 1e-3
    assert float(t.mean()) == pytest.approx(0.65, abs=0.01)
    assert float(t.std()) == pytest.approx(0.3 / 12**0.5, abs=0.005)


def test_two_steps_are_those_of_the_solver():
    z = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def field(x, t, y=None):
        return torch.sin(2 * x) * like(t, x)

    found = two_steps(field, z, torch.full((5,), 0.3))
    expected = solve(field, z, custom([1.0, 0.3]), "euler", "full").x
    torch.testing.assert_close(found, expected)


class Probe(nn.Module):
    """A student with one weight; what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.seen: list[tuple] = []

    def forward(self, x, t, y=None):
        self.seen.append((x, t, y))
        return self.weight * x


def test_the_student_sees_noise_alone_at_time_one_fresh_beside_that_of_the_pairs():
    part, net = batch(), Probe()
    for step in (3, 4):
        terms(net, straight, part, step)
    (first, t, _), (second, _, _) = net.seen
    z = PAIRS(part, StepRNG(0, 3, N)).z
    assert bool((t == 1).all())
    assert torch.equal(first[:N], z)
    assert torch.equal(second[:N], z)
    assert not torch.equal(first[N:], second[N:])  # fresh at every step
    both = torch.stack((first[N:].flatten(), z.flatten()))
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.12  # 1,024 values: 4 standard errors
    assert float(first[N:].var()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("own", "evaluations", "forwards"), [(True, 1, 7), (False, 2, 8)])
def test_the_budget_counts_every_evaluation(own, evaluations, forwards):
    """Student forward and backward on pairs and on fresh noise, 3 each, and the teacher."""
    net, teacher = Probe(), CallCounter(straight)
    terms(net, teacher, batch(), two_step={"own": own})
    assert [len(x) for x, _, _ in net.seen] == [2 * N]
    assert teacher.calls == evaluations
    assert recipe(two_step={"own": own}).forwards == 3 + 3 + evaluations == forwards
    assert Recipe().forwards == 3


def test_neither_target_nor_teacher_has_a_gradient():
    """With l2 and v' = w z, the gradient is that of the formula with its target held fixed."""
    net, teacher, t = Probe(), Probe(), 0.5
    found = terms(net, teacher, batch(), two_step={"low": t, "high": t})
    found["two_step"].sum().backward()
    assert teacher.weight.grad is None
    fresh = net.seen[0][0][N:]
    target = (1 - t * 0.7) * (1 - (1 - t) * 0.7) * fresh
    by_hand = (2 * ((1 - 0.7) * fresh - target) * -fresh).flatten(1).mean(1).sum()
    torch.testing.assert_close(net.weight.grad, by_hand)


def test_teacher_and_student_see_the_same_labels():
    net, teacher, y = Probe(), Probe(), torch.arange(N) % 10
    terms(net, teacher, batch(y=y), label_dropout=0.5)
    (_, _, labels), (_, _, of_teacher) = net.seen[0], teacher.seen[0]
    assert torch.equal(labels[:N], labels[N:])
    assert torch.equal(labels[N:], of_teacher)
    hidden = labels[:N] == -1
    assert 0 < int(hidden.sum()) < N
    assert torch.equal(labels[:N][~hidden], y[~hidden])


def test_with_a_perceptual_term_both_are_distances_of_images():
    """As at t = 1 of flow matching, where the distance of velocities has no weight."""

    def perceptual(x_hat, x):
        return (x_hat - x).abs().flatten(1).sum(1)

    part, draws = batch(), StepRNG(0, 3, N)
    changed = recipe(loss={"name": "l2", "perceptual": "lpips"})
    found = objective.loss(changed, PAIRS, perceptual, curved(1.0))(curved(2.0), part, 3, draws)
    matching = changed.model_copy(update={"objective": "flow_matching"})
    plain = objective.loss(matching, PAIRS, perceptual)(curved(2.0), part, 3, draws)
    torch.testing.assert_close(found["distil"], plain["lpips"])
    assert not plain["l2"].any()


def test_without_the_second_term_it_is_regression_at_time_one():
    part, draws = batch(), StepRNG(0, 3, N)
    for name in ("l2", "l2_root", "pseudo_huber"):
        control = Recipe.model_validate({"times": AT_1, "loss": {"name": name}})
        plain = objective.loss(control, PAIRS)(curved(2.0), part, 3, draws)[name]
        found = terms(curved(2.0), straight, part, loss={"name": name})["distil"]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"times": {"distribution": "uniform"}}, "trains at t = 1 alone"),
        ({"times": {"distribution": "fixed", "t": 0.5}}, "trains at t = 1 alone"),
        ({"two_step": {"low": 0.6, "high": 0.4}}, r"low \(0.6\) must not exceed high \(0.4\)"),
        ({"two_step": {"high": 1.2}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        recipe(**changes)


def trained(loss, seed: int, updates: int) -> float:
    """Mean square error, on new noise, of a small student that learned 16 pairs."""
    torch.manual_seed(seed)
    d, few = 2, 16
    net = nn.Sequential(nn.Linear(d, 32), nn.SiLU(), nn.Linear(32, d))
    student = Wrapped(net)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    z = PAIRS(Batch(torch.zeros(few, d), torch.arange(few), None), StepRNG(0, 0, few)).z
    part = Batch(transported(z), torch.arange(few), None)
    for step in range(updates):
        optimizer.zero_grad()
        found = loss(student, part, step, StepRNG(seed, step, few))
        sum(term.mean() for term in found.values()).backward()
        optimizer.step()
    new = torch.randn(2000, d)
    with torch.no_grad():
        return float((new - student(new, torch.ones(2000)) - transported(new)).square().mean())


class Wrapped(nn.Module):
    """A network that is given no time, as a field."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x, t, y=None):
        return self.net(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_few_pairs_guidance_by_the_flow_beats_distillation_of_the_same_budget(seed):
    """The flow is exactly straight; noise that no pair has is what the second term adds."""
    control = Recipe.model_validate({"times": AT_1, "loss": {"name": "l2"}})
    updates = 90
    guided = trained(objective.loss(recipe(), PAIRS, frozen=straight), seed, updates)
    updates = updates * recipe().forwards // control.forwards
    plain = trained(objective.loss(control, PAIRS), seed, updates)
    assert guided < 0.7 * plain
