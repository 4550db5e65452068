"""Trainings on a device: every network and precision, resumed to the bit, layouts, memory."""

import math

import pytest
import torch

from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import Flow
from rfpp_core.training import trainer
from rfpp_core.training.couplings import Coupled
from rfpp_core.training.couplings.independent import independent
from tests.gpu.small import NETS, SHAPE, architecture, go, images, start, with_

COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


@COMPILED
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("arch", NETS)
def test_every_network_learns_in_every_precision(device, spare_the_cpu, arch, precision, compiled):
    enough = precision == "fp32" or (precision == "bf16" and arch == "ncsnpp")
    spare_the_cpu(unless=enough and not compiled and arch != "ddpmpp")
    recipe = with_(precision=precision, compile=compiled)
    runtime.exact_training(device, tf32=precision == "tf32")
    state = start(arch, recipe, device)
    reports = go(state, recipe)
    losses = [report.terms["pseudo_huber"] for report in reports]
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in state.net.parameters())


@COMPILED
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("arch", NETS)
def test_a_resumed_training_is_the_same_to_the_bit(
    device, spare_the_cpu, arch, precision, compiled
):
    """Weights, their average, moments, loss scale and reports.  The resumed training begins with
    other weights and compiles afresh."""
    spare_the_cpu(unless=arch == "ncsnpp" and not compiled)
    recipe = with_(dropout=0.1, steps=6, precision=precision, compile=compiled)
    whole, stopped = start(arch, recipe, device), start(arch, recipe, device)
    reports = go(whole, recipe)
    first = go(stopped, recipe, until=3)
    saved = {name: t.cpu().clone() for name, t in stopped.tensors().items()}
    resumed = start(arch, recipe, device, seed=99)
    resumed.restore({name: t.to(device) for name, t in saved.items()}, stopped.metadata())
    torch.compiler.reset()
    assert first + go(resumed, recipe) == reports
    assert resumed.metadata() == whole.metadata()
    assert (whole.metadata()["scaler"] != {}) == (precision == "fp16")
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.parametrize("arch", NETS)
def test_the_same_images_are_drawn_again_to_the_bit(device, spare_the_cpu, arch):
    spare_the_cpu(unless=arch == "ncsnpp")
    field = build.field(architecture(arch)).to(device, memory_format=torch.channels_last)
    flow = Flow(field.requires_grad_(False).eval(), SHAPE)
    for nfe in (1, 4):
        first = flow.sample(6, nfe, seed=3)
        assert torch.isfinite(first).all()
        assert torch.equal(first, flow.sample(6, nfe, seed=3))


@pytest.mark.parametrize("arch", NETS)
def test_images_are_those_of_the_cpu(device, spare_the_cpu, arch):
    spare_the_cpu(unless=arch == "ncsnpp")
    drawn = []
    for where in (device, torch.device("cpu")):
        field = build.field(architecture(arch)).to(where, memory_format=torch.channels_last)
        drawn.append(Flow(field.requires_grad_(False).eval(), SHAPE).sample(6, 4, seed=3))
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-3)


@COMPILED
@pytest.mark.parametrize("arch", NETS)
def test_adam_updates_the_weights_that_the_gradients_are_of(
    device, spare_the_cpu, arch, compiled, monkeypatch, record_property
):
    """Fused Adam walks memory, so a gradient of another layout than its parameter's would update
    other weights.  Compared with Adam's first step written out, from the gradients as the
    (compiled) backward pass leaves them."""
    spare_the_cpu(unless=arch == "ncsnpp" and not compiled)
    recipe = with_(steps=1, log_every=1, compile=compiled)
    state, align, gradients = start(arch, recipe, device), trainer.align_gradients, {}
    before = {name: p.detach().clone() for name, p in state.net.named_parameters()}

    def watched(params):
        params = list(params)
        named = [(name, p) for name, p in state.net.named_parameters() if p.grad is not None]
        gradients.update({name: p.grad.clone() for name, p in named})
        moved = [name for name, p in named if p.grad.stride() != p.stride()]
        record_property("gradients of another layout", moved)
        align(params)
        assert all(p.grad.stride() == p.stride() for _, p in named)
        assert all(torch.equal(p.grad, gradients[name]) for name, p in named)

    monkeypatch.setattr(trainer, "align_gradients", watched)
    go(state, recipe)
    assert gradients
    for name, p in state.net.named_parameters():
        expected = before[name]
        if name in gradients:
            g = gradients[name]
            expected = expected - recipe.lr * g / (g.abs() + recipe.eps)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_parts_add_up_to_the_whole_batch(device):
    whole, parts = start("ncsnpp", with_(), device), start("ncsnpp", with_(accumulate=4), device)
    reports, parted = go(whole, with_()), go(parts, with_(accumulate=4))
    for one, other in zip(reports, parted, strict=True):
        assert other.terms["pseudo_huber"] == pytest.approx(one.terms["pseudo_huber"], rel=2e-3)
    with pytest.raises(UserError, match="not a multiple of accumulate"):
        go(start("small_unet", with_(accumulate=3), device), with_(accumulate=3))


@pytest.mark.parametrize("how", [{"precision": "fp16"}, {"nonfinite": "skip"}])
def test_an_update_that_overflows_is_skipped(device, how):
    recipe = with_(**how, steps=9)
    state = start("small_unet", recipe, device)

    def overflowing(batch, draws):
        x, z, y = independent(batch, draws)
        return Coupled(x * (math.inf if draws.step == 4 else 1.0), z, y)

    reports = go(state, recipe, coupling=overflowing)
    assert all(math.isfinite(report.terms["pseudo_huber"]) for report in reports)
    assert all(torch.isfinite(p).all() for p in state.net.parameters())
    assert float(next(iter(state.optimizer.state.values()))["step"]) == 8


def test_the_perceptual_gradient_in_chunks(device):
    perceptual = pytest.importorskip("rfpp_core.training.perceptual")
    pytest.importorskip("lpips")
    net = perceptual.LPIPS(None, "average", 32).to(device)
    x = images(6).float().to(device) / 127.5 - 1
    found, peaks = [], []
    for chunk in (0, 2):
        net.chunk = chunk
        seen = (0.5 * x).requires_grad_()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        net(seen, x).sum().backward()
        found.append(seen.grad)
        peaks.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else -chunk)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))
    assert peaks[1] < peaks[0]


def test_a_full_device_is_one_line(device):
    def fill():
        with runtime.enough_memory("raise accumulate"):
            if device.type == "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried")
            torch.empty(2**50, dtype=torch.uint8, device=device)

    with pytest.raises(UserError, match=r"out of memory; raise accumulate$"):
        fill()
