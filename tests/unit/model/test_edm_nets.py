"""EDM's networks against float64 references in NumPy, written from the papers' formulas."""

import hashlib
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from rfpp_core.model.nets import dhariwal_unet, edm_layers, edm_unet, song_unet
from rfpp_core.model.nets.dhariwal_unet import DhariwalUNet
from rfpp_core.model.nets.edm_unet import UNetShape
from rfpp_core.model.nets.song_unet import SongUNet
from tests.unit.model.edm_reference import (
    BOX,
    LABELS,
    WIDE,
    Reference,
    angles,
    conv,
    fused_down,
    group_norm,
    reference_adm,
    reference_song,
    resampled,
)

SKEW = (1.0, 2.0, 4.0, 1.0)  # a filter that is not symmetric
INIT = edm_layers.Init("xavier")

tiny = dict(blocks=1, classes=3, dropout=0.1, augment=9)
song = UNetShape(8, 3, 8, (1, 2, 2), attention_resolutions=(8,), **tiny)
ncsnpp = partial(SongUNet, song, "fourier", "residual")
ddpmpp = partial(SongUNet, song, "positional", "standard")
adm = partial(DhariwalUNet, UNetShape(8, 3, 32, (1, 4), attention_resolutions=(4,), **tiny))
each = pytest.mark.parametrize("make", [ncsnpp, ddpmpp, adm], ids=["ncsnpp", "ddpmpp", "adm"])
ncsnpp_and_adm = pytest.mark.parametrize("make", [ncsnpp, adm], ids=["ncsnpp", "adm"])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rough(module):
    """Evaluation in float64 with weights that no initialisation made zero."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape) / math.sqrt(p[0].numel()))
            p.add_(1.0 if re.search(r"norm\d?\.weight", name) else 0.0)
    return module.double().eval()


def inputs(channels=3):
    x, c = torch.randn(3, channels, 8, 8).double(), torch.tensor([-1.3, 0.2, 0.9]).double()
    return x, c, torch.tensor(LABELS)


def arrays(module, prefix=""):
    return {name: t.detach().numpy() for name, t in module.state_dict(prefix=prefix).items()}


def check(ours, reference):
    np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=1e-9, atol=1e-10)


# Names, shapes, order.


def lines_and_count(make):
    with torch.device("meta"):
        net = torch.nn.ModuleDict({"model": make()})
    state = net.state_dict()
    assert all(t.is_meta for t in state.values())
    lines = [f"{name} {'x'.join(map(str, t.shape))}" for name, t in state.items()]
    return lines, sum(p.numel() for p in net.parameters())


def digest(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


CIFAR10 = UNetShape(32, 3, 128, (2, 2, 2), 4, (16,), augment=9)
FACES64 = replace(CIFAR10, image_size=64, multipliers=(1, 2, 2, 2))
IMAGENET64 = UNetShape(64, 3, 192, (1, 2, 3, 4), 3, (32, 16, 8), classes=1000)
OF_CIFAR10 = (432, 56_397_827,
           "ee4adba2bb01d0d70f690d16c8a56756398d656a62ee5f4fb04bc031bb0d8b14",
           "6d746bc70b17f3e86b1708fadafdaa20ceadf60e55102e487e87e368453d882e")  # fmt: skip
OF_FACES64 = (563, 62_761_091,
           "8bc7a5c14539c6092080dbe141968dd74e480ce6b25de8cec11e76ed1416f0f4",
           "4062343698335123c189f84c035d0c3bb44aac0192247b9f7cc69df48b17f1b4")  # fmt: skip
OF_IMAGENET64 = (553, 295_899_267,
              "f6b95463c946e7bb281b426c326571aa60854a46ce46555c9de7be1534d622e1",
              "a6c2c23fa4053eb3c8f5f318cbd9e49b259b425e46fd260e56fdf118c8050bf5")  # fmt: skip


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(SongUNet, CIFAR10, "fourier", "residual"), OF_CIFAR10),
        (partial(SongUNet, FACES64, "fourier", "residual"), OF_FACES64),
        (partial(DhariwalUNet, IMAGENET64), OF_IMAGENET64),
    ],
    ids=["cifar10", "faces64", "imagenet64"],
)
def test_states_are_those_of_the_published_weights(make, expected):
    lines, count = lines_and_count(make)
    assert (len(lines), count, digest(lines), digest(sorted(lines))) == expected


@pytest.mark.parametrize(
    ("shape", "expected"), [(CIFAR10, (425, 55_733_891)), (FACES64, (553, 61_805_571))]
)
def test_ddpmpp_counts(shape, expected):
    lines, count = lines_and_count(partial(SongUNet, shape, "positional", "standard"))
    assert (len(lines), count) == expected


def test_an_image_that_does_not_halve_is_refused():
    with pytest.raises(ValueError, match="10 pixels do not halve 2 times"):
        SongUNet(UNetShape(10, 3, 8, (2, 2, 2), 4, (16,)), "fourier", "residual")


# Layers.


@pytest.mark.parametrize("taps", [WIDE, BOX, SKEW])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_resampling(kernel, way, taps):
    layer = rough(edm_layers.Conv2d(3, 5 if kernel else 3, kernel, INIT, way, taps))
    x, weights = inputs()[0], [p.detach().numpy() for p in layer.parameters()]
    # a transposed convolution turns its filter round
    expected = resampled(x.numpy(), taps[::-1] if way == "up" else taps, way)
    check(layer(x), conv(expected, *weights, kernel // 2) if kernel else expected)


@pytest.mark.parametrize("taps", [WIDE, BOX])
def test_doubling_is_a_transposed_convolution_without_one(taps):
    layer = edm_layers.Conv2d(3, 3, 0, INIT, "up", taps)
    x = inputs()[0].to(memory_format=torch.channels_last)
    window = 4 * layer.resample_filter.double().repeat(3, 1, 1, 1)
    transposed = torch.nn.functional.conv_transpose2d
    expected = transposed(x, window, stride=2, padding=(len(taps) - 1) // 2, groups=3)
    with torch.profiler.profile() as profile:
        found = layer(x)
    assert not [event.name for event in profile.events() if "conv" in event.name]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("taps", [WIDE, BOX, SKEW])
def test_fused_down(taps):
    layer = rough(edm_layers.Conv2d(3, 5, 3, INIT, "fused_down", taps))
    x, weights = inputs()[0], [p.detach().numpy() for p in layer.parameters()]
    check(layer(x), fused_down(x.numpy(), *weights, taps))


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (24, 6), (128, 32), (192, 32)])
def test_group_norm(channels, groups):
    layer, x = rough(edm_layers.group_norm(channels, 1e-2)), inputs(channels)[0]
    assert layer.num_groups == groups
    check(layer(x), group_norm(x.numpy(), *arrays(layer).values(), 1e-2))


@pytest.mark.parametrize(("endpoint", "slowest"), [(True, 1e-4), (False, 10000 ** (-5 / 6))])
def test_positional_embedding(endpoint, slowest):
    layer, c = edm_layers.PositionalEmbedding(12, endpoint), inputs()[1]
    a = angles(c.numpy(), 12, endpoint)
    check(layer(c), np.concatenate((np.cos(a), np.sin(a)), axis=1))
    check(layer(c)[:, -1], np.sin(slowest * c.numpy()))


def test_fourier_embedding():
    layer, c = edm_layers.FourierEmbedding(4000).double(), inputs()[1]
    assert float(layer.freqs.std()) == pytest.approx(16, rel=0.05)
    a = 2 * math.pi * np.outer(c.numpy(), layer.freqs.numpy())
    check(layer(c), np.concatenate((np.cos(a), np.sin(a)), axis=1))


SONG, ADM = song_unet.block_style(16, 0.1, WIDE), dhariwal_unet.block_style(16, 0.1, INIT)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize(
    ("c_in", "c_out", "way"),
    [(8, 8, None), (12, 8, None), (8, 8, "up"), (8, 8, "down"), (64, 128, None)],
)
@pytest.mark.parametrize(("style", "taps"), [(SONG, WIDE), (ADM, BOX)], ids=["song", "adm"])
def test_block(style, taps, c_in, c_out, way, attends):
    block = rough(edm_unet.UNetBlock(c_in, c_out, style, way, attends))
    x, emb = inputs(c_in)[0], torch.randn(3, 16).double()
    reference = Reference(arrays(block, "block."), style is ADM, taps)
    check(block(x, emb), reference.block(x.numpy(), emb.numpy(), "block", way))
    assert not torch.equal(block.train()(x, emb), block.eval()(x, emb))  # dropout


@pytest.mark.parametrize(("style", "scale"), [(SONG, 0.5), (ADM, 1.0)], ids=["song", "adm"])
def test_a_silent_block_scales_its_skip_once_and_after_attention_again(style, scale):
    block, x = edm_unet.UNetBlock(8, 8, style, attention=True).double(), inputs(8)[0]
    torch.nn.init.zeros_(block.conv1.weight)
    torch.nn.init.zeros_(block.proj.weight)
    check(block(x, torch.zeros(3, 16).double()), scale * x.numpy())


# Networks.


@each
def test_network(make):
    net, (x, c, y) = rough(make()), inputs()
    reference = reference_adm if make is adm else reference_song
    expected = reference(arrays(net), x.numpy(), c.numpy())
    assert expected.std() > 0.1
    check(net(x, c, y), expected)


def seen_by(net, name, *args):
    """First input and output of a submodule during a call, and the output of the call."""
    seen, part = [], net.get_submodule(name)
    hook = part.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    out = net(*args)
    hook.remove()
    return *seen[0], out


@ncsnpp_and_adm
def test_labels(make):
    net, (x, c, y) = rough(make()), inputs()
    given, _, out = seen_by(net, "map_label", x, c, y)
    one = 3**0.5 if make is ncsnpp else 1
    check(given, [[0, 0, one], [0, 0, 0], [one, 0, 0]])
    none = net(x, c)
    assert torch.equal(none, net(x, c, torch.full((3,), -1)))
    check(none[1], out[1].detach())
    assert not torch.allclose(none[0], out[0])
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        net(x, c, y + 2)


@each
def test_only_the_augmentation_gets_no_gradient(make):
    net, (x, c, y) = rough(make()), inputs()
    net(x, c, y).square().sum().backward()
    named = dict(net.named_parameters())
    assert named["map_augment.weight"].shape == (named["map_layer0.weight"].shape[1], 9)
    assert {name for name, p in named.items() if p.grad is None} == {"map_augment.weight"}
    assert {name for name, p in named.items() if not p.requires_grad} == {"map_augment.weight"}
    assert all(p.grad.any() for p in named.values() if p.requires_grad)


@each
def test_channels_last(make):
    net, (x, c, y) = rough(make()), inputs()
    expected = net(x, c, y)
    net = net.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    _, inside, out = seen_by(net, "dec.8x8_block1", x, c, y)
    check(out, expected.detach())
    assert inside.is_contiguous(memory_format=torch.channels_last)


@each
def test_autocast_leaves_the_embedding_alone(make):
    net, (x, c, y) = rough(make()).float(), inputs()
    args = (x.float(), c.float(), y)
    _, embedding, exact = seen_by(net, "map_noise", *args)
    with torch.autocast("cpu", torch.bfloat16):
        _, same, rounded = seen_by(net, "map_noise", *args)
    assert embedding.dtype == same.dtype == torch.float32
    assert torch.equal(embedding, same)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded - exact).detach().std() < 0.05 * exact.detach().std()


@ncsnpp_and_adm
def test_compiles_without_graph_breaks(make):
    net, (x, c, y) = rough(make()), inputs()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, c, y), net(x, c, y))
    assert torch.equal(compiled(x, c), net(x, c))


# Initialisation.


def is_uniform(t, bound):
    return 0.97 < float(t.abs().max()) / bound < 1 + 1e-6 and abs(float(t.mean())) < 0.1 * bound


def test_song_starts_xavier():
    net = SongUNet(UNetShape(16, 3, 32, (1, 2), 1, (16,), 10, augment=9), "fourier", "residual")
    for name, p in net.requires_grad_(False).named_parameters():
        if p.ndim == 1:
            assert (p == float("norm" in name and name.endswith("weight"))).all(), name
            continue
        gain = 1e-5 if re.search(r"conv1|proj|aux_conv", name) else 1.0
        gain = math.sqrt(0.2) if "qkv" in name else gain
        fans = p[0, 0].numel() * (p.shape[0] + p.shape[1])
        assert is_uniform(p, gain * math.sqrt(6 / fans)), name


def test_adm_starts_kaiming_and_silent():
    net = DhariwalUNet(UNetShape(16, 3, 32, (1, 2), 1, (16, 8), 100, augment=9, dropout=0.1))
    for name, p in net.requires_grad_(False).named_parameters():
        if "norm" in name:
            assert (p == float(name.endswith("weight"))).all(), name
        elif re.search(r"conv1|proj|out_conv", name):
            assert not p.any(), name
        elif name == "map_label.weight":
            assert float(p.std()) == pytest.approx(1, rel=0.03)
            assert p.abs().max() > 3
        elif name.endswith("weight"):
            assert is_uniform(p, 1 / math.sqrt(p[0].numel())), name
        else:
            fan_in = net.get_parameter(name.removesuffix("bias") + "weight")[0].numel()
            assert 0.7 < p.abs().max() * math.sqrt(fan_in) < 1 + 1e-6, name
    assert not net(torch.randn(2, 3, 16, 16), torch.zeros(2)).any()
