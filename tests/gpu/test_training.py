"""Trainings on a device: every network and precision, to the bit again, layouts, memory."""

import math
import os

import pytest
import torch

from rfpp_core import runtime
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import Flow
from rfpp_core.training.couplings import Coupled
from rfpp_core.training.couplings.independent import independent
from rfpp_core.training.trainer import align_gradients
from tests.gpu.small import NETS, SHAPE, architecture, go, images, start, with_


def spare_the_cpu(device, enough):
    """Skips on a CPU what another case covers there, unless GPU_TESTS_SLOW asks for all."""
    if device.type == "cpu" and not enough and not os.environ.get("GPU_TESTS_SLOW"):
        pytest.skip("takes long on a CPU (GPU_TESTS_SLOW=1)")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("arch", NETS)
def test_every_network_learns_in_every_precision(device, arch, precision, compiled):
    enough = precision == "fp32" or (precision == "bf16" and arch == "ncsnpp")
    spare_the_cpu(device, enough and not compiled and arch != "ddpmpp")
    recipe = with_(precision=precision, compile=compiled)
    runtime.exact_training(device, tf32=precision == "tf32")
    state = start(arch, recipe, device)
    reports = go(state, recipe)
    losses = [report.terms["pseudo_huber"] for report in reports]
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in state.net.parameters())


@pytest.mark.parametrize("arch", NETS)
def test_a_resumed_training_is_the_same_to_the_bit(device, arch):
    spare_the_cpu(device, arch == "ncsnpp")
    recipe = with_(dropout=0.1, steps=6)
    whole, stopped = start(arch, recipe, device), start(arch, recipe, device)
    reports = go(whole, recipe)
    first = go(stopped, recipe, until=3)
    saved = {name: t.cpu().clone() for name, t in stopped.tensors().items()}
    resumed = start(arch, recipe, device, seed=99)
    resumed.restore({name: t.to(device) for name, t in saved.items()}, stopped.metadata())
    assert first + go(resumed, recipe) == reports
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.parametrize("arch", NETS)
def test_the_same_images_are_drawn_again_to_the_bit(device, arch):
    spare_the_cpu(device, arch == "ncsnpp")
    field = build.field(architecture(arch)).to(device, memory_format=torch.channels_last)
    flow = Flow(field.requires_grad_(False).eval(), SHAPE)
    for nfe in (1, 4):
        first = flow.sample(6, nfe, seed=3)
        assert torch.isfinite(first).all()
        assert torch.equal(first, flow.sample(6, nfe, seed=3))


@pytest.mark.parametrize("arch", NETS)
def test_gradients_have_the_layout_of_their_parameters(device, arch):
    spare_the_cpu(device, arch == "ncsnpp")
    state = start(arch, with_(), device)
    x = torch.randn(4, *SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    state.net(x, torch.rand(4, device=device)).square().mean().backward()
    params = [p for p in state.net.parameters() if p.grad is not None]
    before = [p.grad.clone() for p in params]
    align_gradients(params)
    assert all(p.grad.stride() == p.stride() for p in params)
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


def test_parts_add_up_to_the_whole_batch(device):
    whole, parts = start("ncsnpp", with_(), device), start("ncsnpp", with_(accumulate=4), device)
    reports, parted = go(whole, with_()), go(parts, with_(accumulate=4))
    for one, other in zip(reports, parted, strict=True):
        assert other.terms["pseudo_huber"] == pytest.approx(one.terms["pseudo_huber"], rel=2e-3)
    with pytest.raises(UserError, match="not a multiple of accumulate"):
        go(start("small_unet", with_(accumulate=3), device), with_(accumulate=3))


@pytest.mark.parametrize("how", [{"precision": "fp16"}, {"nonfinite": "skip"}])
def test_an_overflow_is_skipped(device, how):
    recipe = with_(**how, steps=9)
    state = start("small_unet", recipe, device)

    def spoilt(batch, draws):
        x, z, y = independent(batch, draws)
        return Coupled(x * (math.inf if draws.step == 4 else 1.0), z, y)

    reports = go(state, recipe, coupling=spoilt)
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
