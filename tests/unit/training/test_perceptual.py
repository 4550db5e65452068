import zipfile

import pytest
import torch
from torch import nn

from pipeline.work import perceptual_net
from rfpp_core.config import objective
from rfpp_core.config.recipe import Loss, Recipe, Times
from rfpp_core.errors import UserError
from rfpp_core.images.loader import Batch
from rfpp_core.rng import StepRNG
from rfpp_core.training import losses, perceptual
from rfpp_core.training.couplings import Coupled


def images(n=2, side=32, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def published():
    """Max-pooled, at the images' own size: what the lpips package computes."""
    return perceptual.LPIPS(None, "max", 0)


def test_equals_the_package_with_a_random_trunk(published):
    a, b = images(), images(seed=1)
    torch.testing.assert_close(published(a, b), published.net(a, b).flatten(), atol=1e-6, rtol=0)
    grey = images()[:, :1]
    wide = grey.expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        published(grey, -grey), published.net(wide, -wide).flatten(), atol=1e-6, rtol=0
    )


def test_resizing_and_average_pools(published):
    a, b = images(), images(seed=1)
    resized = perceptual.LPIPS(None, "max", 64)
    resized.load_state_dict(published.state_dict())
    up = nn.Upsample(size=64, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(a, b), published.net(up(a), up(b)).flatten(), rtol=1e-5,
                               atol=0)  # fmt: skip
    average = perceptual.LPIPS(None, "average", 0)
    average.load_state_dict(published.state_dict())
    pooled = [m for m in average.net.net.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    assert [type(m) for m in pooled] == [nn.AvgPool2d] * 4
    first = average.net.net.slice1(average.net.scaling_layer(images()))
    pooled = first.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    slice2 = average.net.net.slice2
    torch.testing.assert_close(slice2(first), slice2[1:](pooled))


@pytest.mark.parametrize("make", [
    lambda: perceptual.LPIPS(None, "average", 0), lambda: perceptual.label_net(3, 4, 0),
])  # fmt: skip
def test_gradients(make):
    net, x = make(), images()
    same = x.clone().requires_grad_()
    distance = net(same, x)
    torch.testing.assert_close(distance, torch.zeros(2))
    distance.sum().backward()
    assert torch.isfinite(same.grad).all()
    black = torch.zeros_like(x).requires_grad_()
    net(black, x).sum().backward()
    assert torch.isfinite(black.grad).all()
    assert black.grad.abs().max() > 0
    target = x.clone().requires_grad_()
    net(images(seed=3).requires_grad_(), target).sum().backward()
    assert target.grad is None


def test_a_dead_layer_has_a_finite_gradient():
    """All features zero: without the epsilon inside the root, 0 times infinity."""
    net, x = perceptual.label_net(3, 4, 0), images()
    with torch.no_grad():
        for p in net.stages.parameters():
            p.zero_()
    same = x.clone().requires_grad_()
    net(same, x).sum().backward()
    assert torch.isfinite(same.grad).all()


DEEP_KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."  # crashes what hashes it


def test_weights_are_read_as_data(tmp_path, published):
    path = tmp_path / "vgg.pth"
    trunk = {f"features.{name.partition('.')[2]}": torch.full_like(value, 0.01)
             for name, value in published.net.net.state_dict().items()}  # fmt: skip
    torch.save({**trunk, "classifier.0.bias": torch.zeros(1)}, path)
    section = Loss(perceptual="lpips", vgg_path=str(path))
    net = perceptual_net.lpips(section)
    assert all(float((value - 0.01).abs().max()) == 0
               for value in net.net.net.state_dict().values())  # fmt: skip

    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            perceptual_net.lpips(section)
        assert str(caught.value).isprintable()

    torch.save({"other": torch.zeros(1)}, path)
    refused(r"vgg\.pth is not torchvision's VGG16: has no tensor 'features\.0\.weight'$")
    torch.save({**trunk, "features.0.bias": torch.zeros(3)}, path)
    refused(r"vgg\.pth is not torchvision's VGG16: features\.0\.bias is \(3,\), not \(64,\)$")
    path.write_bytes(b"x")
    refused(r"vgg\.pth is not torchvision's VGG16: is corrupted or not a checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", DEEP_KEY)
    refused(r"vgg\.pth is not torchvision's VGG16: .* unhashable")


@pytest.mark.parametrize("over_t", [False, True])
def test_lpips_huber_is_the_paper_s_sum(over_t):
    """(1 - t) huber(v, z - x) + LPIPS(x_t - t v, x), over t in the second."""
    x, z = images(3, 8), images(3, 8, seed=1)
    t, v = torch.tensor([0.2, 0.5, 0.9]), images(3, 8, seed=2)
    distance = lambda a, b: (a - 2 * b).flatten(1).mean(1)  # noqa: E731
    weighting = "over_t" if over_t else "constant"
    recipe = Recipe(
        loss=Loss(name="pseudo_huber", perceptual="lpips", weighting=weighting),
        times=Times(distribution="uniform"),
    )
    loss = objective.loss(recipe, lambda batch, draws: Coupled(batch.x, z, None), distance)

    class Given(StepRNG):
        def uniform(self, purpose):
            return (t - 1e-5) / (1 - 2e-5)

    terms = loss(lambda x_t, time, y: v, Batch(x, torch.arange(3), None), 0, Given(0, 0, 3))
    at = t[:, None, None, None]
    x_hat = (1 - at) * x + at * z - at * v
    seen = distance(x_hat, x) / (t if over_t else 1)
    torch.testing.assert_close(terms["lpips"], seen, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["pseudo_huber"], (1 - t) * losses.pseudo_huber(v, z - x),
                               atol=1e-6, rtol=1e-4)  # fmt: skip
    assert set(terms) == {"lpips", "pseudo_huber"}


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
@pytest.mark.parametrize("make", [
    lambda: perceptual.LPIPS(None, "average", 32), lambda: perceptual.label_net(3, 4, 0),
])  # fmt: skip
def test_in_chunks_value_and_gradient_are_the_same(make, chunk):
    """And nothing of the net is kept for the backward pass but one image an image."""
    torch.manual_seed(0)
    net, x = make(), images(5, 16)
    weight = torch.rand(5)

    def run(size):
        net.chunk = size
        seen = images(5, 16, seed=1).requires_grad_()
        distance = net(seen, x)
        (distance * weight).sum().backward(retain_graph=True)
        return distance, seen.grad

    plain, gradient = run(0)
    chunked, same = run(chunk)
    assert [t.shape for t in chunked.grad_fn.saved_tensors] == [x.shape]
    assert chunked.grad_fn.next_functions[0][0].name().endswith("AccumulateGrad")
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-7)
    # float32 sums differ in their last bits, which may tip a ReLU that stands at its kink
    assert float((same - gradient).norm() / gradient.norm()) < 1e-4


def test_the_params_choose_the_chunk(monkeypatch):
    monkeypatch.setattr(perceptual_net, "lpips", lambda section: perceptual.LPIPS(None))
    cpu, section = torch.device("cpu"), Loss(perceptual="lpips", chunk=4)
    assert perceptual_net.load(section, None, cpu).chunk == 4
    assert Loss().chunk == 0
