"""The net of a perceptual loss is trained once for all trainings, and resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import artifacts
from pipeline.work import perceptual_net
from rfpp_core.config.dataset import Dataset
from rfpp_core.config.recipe import Loss
from rfpp_core.errors import UserError
from rfpp_core.evaluation import classifier
from rfpp_core.images import sources
from rfpp_core.images import store as image_store

LOSS, CPU = Loss(perceptual="classifier"), torch.device("cpu")
STEPS = 12


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("RFPP_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(perceptual_net, "STEPS", STEPS)
    source = sources.digits().take(np.arange(200))
    image_store.write(artifacts.IMAGES, source, np.arange(200) >= 150)
    return tmp_path


@pytest.fixture
def updates(monkeypatch):
    """The number of each update that was computed."""
    found: list[int] = []
    train = classifier.train_classifier

    def watched(*args):
        for step in train(*args):
            found.append(step)
            yield step

    monkeypatch.setattr(classifier, "train_classifier", watched)
    return found


def net(seed: int = 0, loss: Loss = LOSS) -> dict[str, torch.Tensor]:
    found = perceptual_net.load(loss, Dataset(seed=seed), CPU)
    assert isinstance(found, torch.nn.Module)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    return {name: t.clone() for name, t in found.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def staged() -> list[str]:
    return sorted(path.name for path in artifacts.work().glob("perceptual/*") if path.is_dir())


def test_it_is_trained_once_whatever_the_training(here, updates, capsys):
    first = net()
    assert updates == list(range(1, STEPS + 1))
    assert "perceptual classifier: held-out accuracy" in capsys.readouterr().out
    again = net(loss=Loss(perceptual="classifier", chunk=4, weighting="over_t"))
    assert len(updates) == STEPS
    assert same(first, again)
    assert len(staged()) == 1
    assert capsys.readouterr().out == ""


def test_an_interrupted_one_resumes_bit_for_bit(here, updates, monkeypatch, capsys):
    save = perceptual_net.workdir.Saver.maybe

    def killed(self, done):
        save(self, done)
        if self.state.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(perceptual_net.workdir.Saver, "maybe", killed)
        with pytest.raises(KeyboardInterrupt):
            net()
    resumed = net()
    assert updates == list(range(1, STEPS + 1))
    assert "perceptual classifier: resumes at step 5" in capsys.readouterr().out
    for path in artifacts.work().glob("perceptual/*/state-*"):
        path.unlink()
    assert same(net(), resumed)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_a_recipe_change_nothing(here, threads):
    before = torch.get_num_threads()
    first = net()
    for path in artifacts.work().glob("perceptual/*/state-*"):
        path.unlink()
    torch.set_num_threads(threads)
    try:
        assert same(net(), first)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_corrupted_state_is_named_and_trained_again_from_the_one_before(here, updates, capsys):
    first = net()
    newest = max(artifacts.work().glob("perceptual/*/state-*.safetensors"))
    newest.write_bytes(b"junk")
    assert same(net(), first)
    assert updates[STEPS:] == [STEPS]
    assert f"state of step {STEPS} is corrupted" in capsys.readouterr().out


def test_what_determines_it(here):
    first = net()
    assert not same(first, net(seed=1))
    assert len(staged()) == 2
    source = sources.digits().take(np.arange(1, 201))
    image_store.write(here / "other.zarr", source, np.arange(200) >= 150)
    artifacts.IMAGES.rename(here / "old.zarr")
    (here / "other.zarr").rename(artifacts.IMAGES)
    assert not same(first, net())
    assert len(staged()) == 3


def test_images_without_labels_are_one_line(here, monkeypatch):
    metadata = {**image_store.metadata(artifacts.IMAGES), "classes": 0}
    monkeypatch.setattr(image_store, "metadata", lambda _: metadata)
    with pytest.raises(UserError, match="learns labels, but the images have none"):
        net()
