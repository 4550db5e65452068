import dataclasses

import pytest
import torch

from rfpp_core.config import build, objective
from rfpp_core.config.recipe import Recipe
from rfpp_core.errors import UserError
from rfpp_core.images import loader
from rfpp_core.images.loader import Batch
from rfpp_core.storage import checkpoint
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.train_config import TrainConfig
from rfpp_core.training.trainer import (
    NonFiniteLoss,
    TrainState,
    check_share,
    learning_rate,
    train,
)
from tests.helpers import tiny_arch

CPU = torch.device("cpu")
IMAGES = torch.randint(
    0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
RECIPE = Recipe(steps=12, batch=8, warmup=3, log_every=3, dropout=0.2, threads=1)


def run(steps=12, resume_from=None, recipe=RECIPE, tmp=None, images=IMAGES):
    """Trains to ``steps``; with ``resume_from`` it stops there, saves, and starts afresh."""
    torch.set_num_threads(1)
    config = dataclasses.replace(build.train_config(recipe, 5), steps=steps)
    loss = objective.loss(recipe, independent)
    state = TrainState(build.field(tiny_arch(), recipe.dropout), config, CPU)
    reports = []

    def go(state, until):
        source = loader.batches(images, None, recipe.batch, 1, CPU, state.step)
        for report in train(state, source, loss, config):
            reports.append(report)
            if report.step == until:
                return

    if resume_from is not None:
        go(state, resume_from)
        checkpoint.save_state(tmp, state.step, state.tensors(), state.metadata())
        saved = checkpoint.load_state(tmp, steps)
        state = TrainState(build.field(tiny_arch(), recipe.dropout, seed=99), config, CPU)
        state.restore(saved.tensors, saved.metadata)
        torch.manual_seed(123)  # whatever the process did before must not matter
    go(state, steps)
    return state, reports


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_exact(tmp_path, precision):
    """Weights, their average, the optimiser's moments, the loss scaler and the reports."""
    recipe = RECIPE.model_copy(update={"precision": precision})
    whole, reports = run(recipe=recipe)
    for j in (3, 6, 9):
        resumed, parts = run(resume_from=j, recipe=recipe, tmp=tmp_path)
        assert parts == reports
        assert resumed.metadata() == whole.metadata()
        for name, tensor in whole.tensors().items():
            assert torch.equal(tensor, resumed.tensors()[name]), name
    assert (whole.metadata()["scaler"] != {}) == (precision == "fp16")


def test_loss_falls():
    recipe = RECIPE.model_copy(update={"steps": 150, "log_every": 50, "dropout": 0.0})
    _, reports = run(150, recipe=recipe, images=IMAGES[:1].repeat(40, 1, 1, 1))
    assert reports[-1].terms["pseudo_huber"] < 0.8 * reports[0].terms["pseudo_huber"]


def test_accumulated_parts_are_the_whole_batch():
    """Same draws, same update, whatever the number of parts."""
    recipe = RECIPE.model_copy(update={"dropout": 0.0})
    whole, reports = run(recipe=recipe)
    parts, parted = run(recipe=recipe.model_copy(update={"accumulate": 4}))
    for name, p in whole.net.state_dict().items():
        torch.testing.assert_close(parts.net.state_dict()[name], p, rtol=1e-3, atol=2e-5)
    for one, other in zip(reports, parted, strict=True):
        assert other.terms["pseudo_huber"] == pytest.approx(one.terms["pseudo_huber"], rel=1e-3)


def test_one_step_is_adams():
    """First update of Adam: -lr g / (|g| + eps), with the average following it."""
    config = TrainConfig(
        seed=0, steps=1, batch=4, lr=0.1, eps=1e-12, log_every=1, ema=0.75, ema_ramp=False
    )
    net = torch.nn.Linear(3, 3)
    before = net.weight.detach().clone()
    state = TrainState(net, config, CPU)
    batch = Batch(torch.randn(4, 3), torch.arange(4), None)

    def loss(net, batch, step, draws):
        return {"square": net(batch.x).square().sum(1)}

    net.zero_grad()
    net(batch.x).square().sum(1).mean().backward()
    sign = net.weight.grad.sign()
    [report] = train(state, [batch], loss, config)
    torch.testing.assert_close(net.weight.detach(), before - 0.1 * sign)
    torch.testing.assert_close(state.average.weight, 0.75 * before + 0.25 * net.weight.detach())
    assert report.step == 1
    assert not torch.equal(state.average.weight, net.weight)


def test_every_option_is_one_of_a_recipe():
    """Identities do not follow TrainConfig, so nothing may stand at its defaults unseen."""
    options = {field.name for field in dataclasses.fields(TrainConfig)}
    assert options - {"seed"} <= set(Recipe.model_fields)
    recipe = Recipe(warmup=7, beta1=0.5, clip=1.0, nonfinite="skip")
    config = build.train_config(recipe, 3)
    for name in options - {"seed"}:
        assert getattr(config, name) == getattr(recipe, name)
    assert config.seed == 3


def test_rates():
    constant = TrainConfig(seed=0, steps=100, batch=1, lr=2.0, warmup=4)
    assert [learning_rate(constant, i) for i in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    cosine = dataclasses.replace(constant, decay="cosine", warmup=0)
    assert learning_rate(cosine, 0) == 2.0
    assert learning_rate(cosine, 50) == pytest.approx(1.0)
    assert learning_rate(cosine, 99) < 0.001


def test_a_loss_that_is_not_finite_stops_the_run():
    config = TrainConfig(seed=0, steps=10, batch=8, lr=1e30, log_every=5)
    state = TrainState(build.field(tiny_arch()), config, CPU)
    source = loader.batches(IMAGES, None, 8, 1, CPU)
    with pytest.raises(NonFiniteLoss, match="steps 0 and 5"):
        list(train(state, source, objective.loss(RECIPE, independent), config))


def test_clipping_limits_the_update():
    recipe = RECIPE.model_copy(update={"clip": 1e-3})
    clipped, reports = run(recipe=recipe)
    assert all(report.grad_norm > 1e-3 for report in reports)  # the norm before clipping
    assert not torch.equal(next(clipped.net.parameters()), next(run()[0].net.parameters()))


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_keeps_weights_in_fp32(precision):
    recipe = RECIPE.model_copy(update={"precision": precision})
    state, reports = run(recipe=recipe)
    assert all(p.dtype == torch.float32 for p in state.net.parameters())
    assert reports[-1].terms["pseudo_huber"] == pytest.approx(
        run()[1][-1].terms["pseudo_huber"], rel=0.1
    )


@pytest.mark.parametrize(("batch", "accumulate"), [(100, 4), (64, 64)])
def test_parts_of_unequal_size_are_refused(monkeypatch, batch, accumulate):
    """50 images in 4 parts would be 5 parts, with gradients 1.25 times too large."""
    config = TrainConfig(seed=0, steps=1, batch=batch, lr=1.0, accumulate=accumulate, log_every=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = rf"{batch // 2} images for each of 2 processes, .* of accumulate \({accumulate}\)"
    with pytest.raises(UserError, match=said):
        next(train(TrainState(torch.nn.Linear(3, 3), config, CPU), [], lambda *_: {}, config))
    check_share(dataclasses.replace(config, batch=4 * accumulate), 2)


def test_gradients_of_another_layout_make_the_same_update():
    """Fused Adam walks memory: a gradient laid out otherwise would update other weights."""
    plain, _ = run()
    hooked = TrainState.__init__

    def start(self, *args):
        hooked(self, *args)
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(
                lambda p: setattr(p, "grad", p.grad.contiguous().clone())
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "__init__", start)
        other, _ = run()
    kernels = [p for p in other.net.parameters() if p.dim() == 4]
    assert any(p.stride() != p.contiguous().stride() for p in kernels)
    for name, tensor in plain.net.state_dict().items():
        torch.testing.assert_close(other.net.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def square_but(bad):
    """A loss of a linear net whose gradient overflows in some steps."""

    def loss(net, batch, step, draws):
        term = net(batch.x).square().sum(1)
        return {"square": term * (1e38 if step in bad else 1.0) * (1e38 if step in bad else 1.0)}

    return loss


SKIPS = pytest.mark.parametrize("how", [{"precision": "fp16"}, {"nonfinite": "skip"}])


def skipping(how, bad, steps=30):
    torch.manual_seed(0)
    config = TrainConfig(seed=0, steps=steps, batch=4, lr=0.1, log_every=10, **how)
    state = TrainState(torch.nn.Linear(3, 3), config, CPU)
    batch = Batch(torch.randn(4, 3), torch.arange(4), None)
    return state, train(state, [batch] * steps, square_but(bad), config)


@SKIPS
def test_an_update_that_overflows_is_skipped(how):
    state, reports = skipping(how, {3, 4, 17})
    reports = list(reports)
    assert state.step == 30
    slots = state.optimizer.state_dict()["state"][0]
    assert float(slots["step"]) == 27
    assert all(torch.isfinite(p).all() for p in state.net.parameters())
    losses = [report.terms["square"] for report in reports]
    assert losses[0] > losses[1] > losses[2] > 0
    if state.scaler.is_enabled():
        assert state.scaler.get_scale() == 65536 / 8


@SKIPS
def test_many_skips_in_a_row_end_the_run(how):
    _, reports = skipping(how, set(range(5, 25)))
    with pytest.raises(NonFiniteLoss, match=r"20 updates in a row .* between steps 20 and 30"):
        list(reports)
    _, reports = skipping(how, set(range(30)) - {0, 15})
    assert len(list(reports)) == 3


def test_without_skipping_one_is_enough():
    _, reports = skipping({}, {3})
    with pytest.raises(NonFiniteLoss, match="between steps 0 and 10"):
        list(reports)


def test_published_warm_up_starts_at_zero_and_stays_a_step_short():
    config = TrainConfig(seed=0, steps=9, batch=1, lr=2.0, warmup=4, warmup_from_zero=True)
    assert [learning_rate(config, i) for i in range(6)] == [0.0, 0.5, 1.0, 1.5, 1.5, 1.5]
    assert learning_rate(dataclasses.replace(config, warmup=0), 0) == 2.0
