"""Generation: the same pairs whoever makes them; other code is caught before it mixes in."""

import re

import numpy as np
import pytest
import torch

from pipeline.work import pair_job, workdir
from pipeline.workers import tasks
from pipeline.workers.pool import WorkerDied
from rfpp_core import load_flow
from rfpp_core.errors import UserError
from rfpp_core.images.pixels import to_uint8
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify
from rfpp_core.sampling.solvers import solve
from rfpp_core.storage import files
from tests.helpers import save_tiny, spec_for


class HerePool:
    """Runs calls in this process."""

    size = 1

    def call(self, target, *args, timeout=None):
        return getattr(tasks, target.partition(":")[2])(*args)


def make(path, teacher, order, n=60, **changes):
    flow = load_flow(teacher)
    PairStore.create(path, spec_for(flow.digest, classes=flow.classes, **changes), n)
    for shard in order:
        tasks.make_shard(str(path), str(teacher), shard)
    return PairStore.open(path)


@pytest.fixture
def teacher(tmp_path):
    tasks._flow.cache_clear()
    return save_tiny(tmp_path / "flow1.safetensors")


def test_threads_and_order_do_not_matter(tmp_path, teacher, monkeypatch):
    digests = set()
    for threads, order in (("1", [0, 1, 2]), ("2", [2, 0, 1]), ("3", [1, 2, 0])):
        monkeypatch.setenv("RFPP_THREADS", threads)
        store = make(tmp_path / f"{threads}.zarr", teacher, order)
        assert verify(store) == []
        digests.add(store.digest())
    assert len(digests) == 1


def test_pairs_are_what_the_teacher_draws(tmp_path, teacher):
    """Pair i, recomputed alone from (seed, i) by the solver; one grey level of float slack."""
    store = make(tmp_path / "p.zarr", teacher, [0, 1, 2])
    index = torch.tensor([0, 7, 59])
    from rfpp_core.sampling import grids

    with torch.inference_mode():
        x = solve(load_flow(teacher).field, store.spec.z(index), grids.uniform(2), "heun").x
    images = store.read(0, 60).images
    gap = np.abs(images[index].astype(int) - to_uint8(x).numpy())
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.02


def test_labels_go_with_their_pairs(tmp_path):
    tasks._flow.cache_clear()
    teacher = save_tiny(tmp_path / "c.safetensors", classes=10)
    store = make(tmp_path / "c.zarr", teacher, [0, 1, 2], guidance=2.0)
    labels = store.read(0, 60).labels
    assert labels.tolist() == store.spec.y(torch.arange(60)).tolist()
    assert len(set(labels.tolist())) > 5


def test_another_teacher_is_refused(tmp_path, teacher):
    make(tmp_path / "p.zarr", teacher, [0])
    save_tiny(teacher, seed=1)
    tasks._flow.cache_clear()
    with pytest.raises(UserError, match="no longer the teacher"):
        tasks.make_shard(str(tmp_path / "p.zarr"), str(teacher), 1)


def test_the_regeneration_check_finds_code_that_makes_other_images(tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make(tmp_path / "p.zarr", teacher, [0, 1])
    work = workdir.Staging(tmp_path / "work")
    work.path.mkdir()

    def check():
        pair_job.check_regenerated(HerePool(), store, [str(teacher)], 1, work)

    check()  # the same code: silent
    right = tasks.to_uint8
    monkeypatch.setattr(tasks, "to_uint8", lambda x: right(x + 0.01))
    with pytest.raises(UserError, match="rfpp work adopt") as error:
        check()
    assert "shard 1" in str(error.value)
    files.write_json(work.path / "adopted.json", [{"why": "a test"}])
    check()  # adopted: silent, and remembered
    assert set(work.adopted[0]) == {"why", "shard", "now"}
    check()
    monkeypatch.setattr(tasks, "to_uint8", lambda x: right(x + 0.02))
    with pytest.raises(UserError, match="rfpp work adopt"):
        check()  # yet other images were not adopted


def test_a_worker_that_dies_at_the_regeneration_check_is_replaced(tmp_path, teacher, monkeypatch):
    monkeypatch.setenv("RFPP_RETRIES", "2")
    monkeypatch.setenv("RFPP_SHARD_TIMEOUT", "7")
    store = make(tmp_path / "p.zarr", teacher, [0])
    work = workdir.Staging(tmp_path)
    deaths, timeouts = [2], []

    class Mortal(HerePool):
        def call(self, target, *args, timeout=None):
            timeouts.append(timeout)
            if deaths[0]:
                deaths[0] -= 1
                raise WorkerDied("the worker on cpu was killed")
            return super().call(target, *args)

    pair_job.check_regenerated(Mortal(), store, [str(teacher)], 0, work)
    assert timeouts == [7, 7, 7]
    deaths[0] = 3
    with pytest.raises(UserError, match=r"could not be checked: the worker on cpu was killed"):
        pair_job.check_regenerated(Mortal(), store, [str(teacher)], 0, work)


def test_another_machine_may_round_a_pixel_differently(tmp_path, teacher, monkeypatch):
    store = make(tmp_path / "p.zarr", teacher, [0])
    work = workdir.Staging(tmp_path)
    right = tasks.to_uint8

    def one_pixel_off(x):
        q = right(x).clone()
        q[0, 0, 0, 0] = (q[0, 0, 0, 0].int() + 1).clamp(max=254).to(torch.uint8)
        return q

    monkeypatch.setattr(tasks, "to_uint8", one_pixel_off)
    with pytest.raises(UserError, match="other images"):
        pair_job.check_regenerated(HerePool(), store, [str(teacher)], 0, work)
    monkeypatch.setattr(tasks.runtime, "signature", lambda device: "another machine")
    pair_job.check_regenerated(HerePool(), store, [str(teacher)], 0, work)


def test_corrupted_shards_are_regenerated(tmp_path, teacher, capsys):
    store = make(tmp_path / "p.zarr", teacher, [0, 1, 2])
    before = store.digest()
    store.shard_files(1)[0].write_bytes(b"")
    pair_job.drop_corrupted(store)
    assert "shard 1 is regenerated" in capsys.readouterr().out
    assert store.missing() == [1]
    tasks.make_shard(str(store.path), str(teacher), 1)
    assert PairStore.open(store.path).digest() == before


def test_real_images_and_their_noise(tmp_path, teacher):
    """Decoding the stored noise gives the images back; threads and order change nothing."""
    from rfpp_core.images import sources
    from rfpp_core.images import store as image_store
    from rfpp_core.sampling.sampler import SamplerConfig

    source = sources.digits().take(np.arange(60))
    image_store.write(tmp_path / "images.zarr", source, np.arange(60) >= 47)
    flow = load_flow(teacher)
    spec = spec_for(flow.digest, solver="midpoint", nfe=64, noise_kind="stored", source="x")
    digests = set()
    for name, order in (("a", [0, 1, 2]), ("b", [2, 1, 0])):
        store = PairStore.create(tmp_path / f"{name}.zarr", spec, 47)
        for shard in order:
            tasks.make_shard(str(store.path), str(teacher), str(tmp_path / "images.zarr"), shard)
        digests.add(store.digest())
    assert len(digests) == 1
    images, labels, noise = store.read_all()
    assert labels.tolist() == [-1] * 47
    back = flow.decode(torch.from_numpy(noise), SamplerConfig("midpoint", 64))
    expected = torch.stack([torch.from_numpy(source.load(i)) for i in range(47)])
    np.testing.assert_array_equal(images, expected)
    torch.testing.assert_close(back, expected / 127.5 - 1, rtol=0, atol=2e-3)
    found = tasks.regenerate(str(store.path), str(teacher), str(tmp_path / "images.zarr"), 2)
    assert (found.share, found.levels, found.same_machine) == (0.0, 0.0, True)


def test_noise_that_differs_on_a_device_is_found_at_the_commit(tmp_path, teacher, monkeypatch):
    """A device that draws other noise from a seed is found at the commit, not by bad pairs."""
    flow = load_flow(teacher)
    store = PairStore.create(tmp_path / "p.zarr", spec_for(flow.digest), 20)
    made = tasks._noise
    monkeypatch.setattr(tasks, "_noise", lambda *args: made(*args) + 1e-6)
    with pytest.raises(UserError, match="shard 0 draws other noise from seed 7 than this CPU"):
        tasks.make_shard(str(store.path), str(teacher), 0)
    assert store.committed() == []
    monkeypatch.setattr(tasks, "_noise", made)
    tasks.make_shard(str(store.path), str(teacher), 0)
    assert PairStore.open(store.path).committed() == [0]


def test_a_full_device_names_micro_batch(tmp_path, teacher, monkeypatch):
    flow = load_flow(teacher)
    store = PairStore.create(tmp_path / "p.zarr", spec_for(flow.digest), 20)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has")

    monkeypatch.setattr(tasks, "draw", full)
    with pytest.raises(MemoryError, match=r"^CUDA out of memory; lower micro_batch \(now 5\)$"):
        tasks.make_shard(str(store.path), str(teacher), 0)


@pytest.mark.parametrize(("room", "fits"), [(15, 10), (9, 5), (3, 2), (0, 0)])
def test_a_full_device_names_a_micro_batch_that_fits(tmp_path, teacher, monkeypatch, room, fits):
    """The next divisor of the shard (20) that is at most half, and then half of that."""
    spec, real = spec_for(load_flow(teacher).digest, micro_batch=20), tasks.draw
    store = PairStore.create(tmp_path / "p.zarr", spec, 20)

    def small(field, state, *rest):
        if len(state) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has")
        return real(field, state, *rest)

    monkeypatch.setattr(tasks, "draw", small)
    named = rf"; {fits} fits$" if fits else r"\)$"
    with pytest.raises(MemoryError, match=r"; lower micro_batch \(now 20\)") as said:
        tasks.make_shard(str(store.path), str(teacher), 0)
    assert re.search(named, str(said.value))
