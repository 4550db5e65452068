"""RF-Edit's value sharing: what must be equal to the bit, and what is kept for which step."""

from dataclasses import replace

import pytest
import torch

from rfpp_core import SamplerConfig
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.model.attention_values import ValueTap
from rfpp_core.runtime import map_exact
from rfpp_core.sampling import flow as flows
from rfpp_core.sampling import value_sharing
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.value_sharing import evaluations, record, replay, translate
from tests.helpers import randomised, tiny_arch

STEPS = 4
NFE = {"euler": 4, "midpoint": 8, "rf-solver": 8, "heun": 8, "taylor:0.01": 8, "fireflow": 5}
EACH = pytest.mark.parametrize("solver", NFE)
SOLVERS = {solver: SamplerConfig(solver, nfe) for solver, nfe in NFE.items()}
MIDPOINT = SOLVERS["midpoint"]


def flow_with(attention):
    net = randomised(build.field(tiny_arch(classes=3, attention=attention)))
    return Flow(net.requires_grad_(False).eval(), (1, 8, 8), classes=3)


@pytest.fixture(scope="module")
def flow():
    return flow_with(attention=1)


def pictures(n=3):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ys(label, n=3):
    return torch.full((n,), label)


@EACH
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_shared_is_the_plain_solver_to_the_bit(flow, solver, guidance):
    sampler = SamplerConfig(solver, NFE[solver], guidance=guidance)
    found = translate(flow, pictures(), 0, 2, sampler, share=0)
    z = flow.invert(pictures(), SOLVERS[solver], [0])
    assert torch.equal(found.noise, z)
    assert torch.equal(found.images, flow.decode(z, sampler, [2]))


def test_a_flow_that_starts_early_with_a_state_in_double_precision(flow):
    """As of an imported EDM teacher."""
    early = replace(flow, metadata={"start": 80 / 81})
    sampler = SamplerConfig("edm-heun", 8, "karras")
    found = translate(early, pictures(), 0, 2, sampler, share=0)
    assert torch.equal(found.noise, early.invert(pictures(), sampler, [0]))
    assert torch.equal(found.images, early.decode(found.noise, sampler, [2]))
    with ValueTap(early.field) as tap:
        images, values = record(early, tap, found.noise, ys(1), sampler, 4, backwards=False)
        assert torch.equal(replay(early, tap, found.noise, ys(1), sampler, values), images)


@EACH
@pytest.mark.parametrize("share", [0, 1, 3, 4])
def test_values_are_kept_of_every_evaluation_of_the_shared_steps(flow, solver, share):
    with ValueTap(flow.field) as tap:
        _, values = record(flow, tap, pictures(), ys(0), SOLVERS[solver], share)
    stages = 1 if solver in ("euler", "fireflow") else 2
    assert tap.blocks == 2
    assert len(values.kept) == share * stages * tap.blocks
    assert {at.step for at, _ in values.kept} == set(range(share))  # from the noise


@EACH
@pytest.mark.parametrize("share", [1, 4])
def test_a_run_is_reproduced_from_its_own_values(flow, solver, share):
    z = pictures(3)
    with ValueTap(flow.field) as tap:

        def run(_: int) -> tuple[torch.Tensor, torch.Tensor]:
            images, values = record(flow, tap, z, ys(1), SOLVERS[solver], share, backwards=False)
            return images, replay(flow, tap, z, ys(1), SOLVERS[solver], values)

        [(images, again)] = map_exact(run, [0], 1)  # on one thread, as a flow decodes
    assert torch.equal(again, images)
    assert torch.equal(images, flow.decode(z, SOLVERS[solver], [1]))


@pytest.mark.parametrize("share", range(1, STEPS + 1))
def test_every_further_step_and_the_label_of_the_inversion_matter(flow, share):
    more, less = (translate(flow, pictures(), 0, 2, MIDPOINT, n) for n in (share, share - 1))
    assert torch.equal(more.noise, less.noise)  # the inversion is watched, not changed
    assert not torch.allclose(more.images, less.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["midpoint", "fireflow", "euler"])
def test_values_of_an_evaluation_are_those_of_its_interval(flow, solver):
    """Times seen in either direction: equal at midpoints, and the two ends of a step at its
    start."""
    sampler, grid = SOLVERS[solver], SOLVERS[solver].plan()[0].tolist()
    seen = []
    hook = flow.field.register_forward_pre_hook(lambda _, args: seen.append(float(args[1][0])))
    flow.invert(pictures(1), sampler, [0])
    back = dict(zip(evaluations(sampler, backwards=True), seen, strict=True))
    seen.clear()
    flow.decode(pictures(1), sampler, [0])
    ahead = dict(zip(evaluations(sampler), seen, strict=True))
    hook.remove()
    assert back.keys() == ahead.keys()
    for at in filter(None, ahead):
        noisy, clean = grid[at.step], grid[at.step + 1]
        middle = solver == "fireflow" or at.stage == 1
        times = ((noisy + clean) / 2,) * 2 if middle else (noisy, clean)
        assert (ahead[at], back[at]) == pytest.approx(times, abs=1e-6)


def test_both_forwards_of_guidance_take_the_values(flow):
    given = []

    class Watched(value_sharing.Values):
        def give(self, evaluation, block, values):
            given.append((evaluation, block))
            return super().give(evaluation, block, values)

    sampler = SamplerConfig("midpoint", 8, guidance=2.5)
    with ValueTap(flow.field) as tap:
        z, values = record(flow, tap, pictures(), ys(0), sampler, 2)
        replay(flow, tap, z, ys(2), sampler, Watched(**vars(values)))
    assert sorted(given) == sorted(2 * list(values.kept))


def test_micro_batches_on_several_threads_keep_values_apart(flow, monkeypatch):
    for module in (flows, value_sharing):
        monkeypatch.setattr(module, "MICRO_BATCH", 4)
    x, found = pictures(11), []
    for threads in ("1", "3"):
        monkeypatch.setenv("RFPP_THREADS", threads)
        found.append(translate(flow, x, 0, 2, MIDPOINT, 2))
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].noise, flow.invert(x, MIDPOINT, [0]))
    parts = [translate(flow, x[i : i + 4], 0, 2, MIDPOINT, 2).images for i in (0, 4, 8)]
    assert torch.equal(found[0].images, torch.cat(parts))


@pytest.mark.parametrize(
    "other",
    [SamplerConfig("midpoint", 6), SamplerConfig("heun", 8), SamplerConfig("euler", 4),
     SamplerConfig("midpoint", 8, grid="karras")],
)  # fmt: skip
def test_another_solver_step_count_or_grid_is_a_clear_error(flow, other):
    with ValueTap(flow.field) as tap:
        z, values = record(flow, tap, pictures(), ys(0), MIDPOINT, 2)
        with pytest.raises(UserError, match="one solver, NFE and grid") as said:
            replay(flow, tap, z, ys(2), other, values)
    assert "values of 4 steps of midpoint were recorded" in str(said.value)


def test_values_of_other_images_are_a_clear_error(flow):
    with ValueTap(flow.field) as tap:
        z, values = record(flow, tap, pictures(), ys(0), MIDPOINT, 2)
        with pytest.raises(UserError, match="re-generate the same images"):
            replay(flow, tap, z[:1], ys(2, 1), MIDPOINT, values)


@pytest.mark.parametrize(
    ("sampler", "share", "message"),
    [
        (MIDPOINT, 5, "share is 5, but 8 NFE of midpoint are 4 steps; give 1 to 4"),
        (MIDPOINT, -1, "share is -1"),
        (SamplerConfig("midpoint", 7), 1, "give 8"),
        (SamplerConfig("fireflow", 1), 1, "give 2"),
        (SamplerConfig("rk45"), 1, "rk45 has no steps that lead both ways"),
        (SamplerConfig("anchored", 4), 1, "anchored has no steps that lead both ways"),
    ],
)
def test_what_cannot_be_shared_is_refused(flow, sampler, share, message):
    with pytest.raises(UserError, match=message):
        translate(flow, pictures(), 0, 2, sampler, share)


def test_a_network_without_attention_is_refused():
    with pytest.raises(UserError, match="no attention"):
        translate(flow_with(attention=0), pictures(), 0, 2, MIDPOINT, 1)


def test_the_size_told_is_that_of_the_values_kept(flow):
    with ValueTap(flow.field) as tap:
        _, values = record(flow, tap, pictures(), ys(0), MIDPOINT, 3)
    kept = sum(found.nbytes for found in values.kept.values())
    assert kept == 3 * value_sharing.bytes_an_image(flow, MIDPOINT, 3)
    assert kept == 3 * 3 * 2 * 2 * (16 * 4 * 4) * 4  # images, steps, stages, blocks, C H W, bytes


def test_values_beyond_the_memory_are_refused(flow, monkeypatch):
    monkeypatch.setattr(value_sharing, "memory", lambda: 1000)
    with pytest.raises(UserError, match="share fewer steps, or give fewer images"):
        translate(flow, pictures(), 0, 2, MIDPOINT, 1)
