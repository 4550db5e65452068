"""A shard in another precision or codec is of other bytes, and of the same images."""

import numpy as np
import pytest

from pipeline.bench.loader import photographs
from pipeline.workers import tasks
from rfpp_core.config import build
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.storage import files
from tests.helpers import save_tiny, spec_for


def made(folder, **changes) -> np.ndarray:
    """The images of a shard by a worker's task, regenerated without a difference."""
    teacher = save_tiny(folder / "teacher.safetensors")
    spec = spec_for(build.load_flow(teacher).digest, **changes)
    store = PairStore.create(folder / "pairs.zarr", spec, 20)
    tasks._flow.cache_clear()
    tasks.make_shard(str(store.path), str(teacher), 0)
    again = tasks.regenerate(str(store.path), str(teacher), 0)
    assert (again.share, again.same_machine) == (0, True)
    return PairStore.open(store.path).read_all().images


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_makes_nearly_the_same_images(tmp_path, precision):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    exact, half = made(tmp_path / "a"), made(tmp_path / "b", precision=precision)
    gap = np.abs(exact.astype(int) - half)
    assert 0 < gap.max() <= 16
    assert gap.mean() < 1


@pytest.mark.long
def test_a_compiled_teacher_makes_nearly_the_same_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    gap = np.abs(made(tmp_path / "a").astype(int) - made(tmp_path / "b", compile=True))
    assert gap.max() <= 2


def test_delta_before_zstd_is_smaller_and_holds_the_same(tmp_path):
    images, sizes, digests = photographs(200, 32), [], set()
    for codec in ("blosc", "delta-zstd"):
        spec = spec_for(shape=(3, 32, 32), shard=200, micro_batch=50, codec=codec)
        store = PairStore.create(tmp_path / f"{codec}.zarr", spec, 200)
        pairs = Pairs(images, np.full(200, -1, np.int16), None)
        store.commit(0, pairs)
        found = PairStore.open(store.path)
        assert (found.spec.codec, found.corruption(0)) == (codec, None)
        np.testing.assert_array_equal(found.read_all().images, images)
        sizes.append(sum(path.stat().st_size for path in found.shard_files(0)))
        digests.add(found.digest())
    assert sizes[1] < 0.95 * sizes[0]
    assert len(digests) == 1


def test_the_defaults_stand_in_no_identity():
    """So pairs of earlier versions keep theirs."""
    assert not {"precision", "compile", "codec"} & spec_for().identity.keys()
    assert files.digest(spec_for(codec="delta-zstd").identity) != files.digest(spec_for().identity)
