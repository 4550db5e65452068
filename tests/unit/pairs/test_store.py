import json

import numpy as np
import pytest

from rfpp_core.errors import UserError
from rfpp_core.images.buffers import Buffers
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore, rebuild_metadata
from rfpp_core.pairs.verify import verify
from tests.helpers import spec_for
from tests.unit.pairs.small import IMAGES, NO_LABELS, fill, flip_a_bit


def test_what_was_committed_is_read(store):
    images, labels, _ = PairStore.open(store.path).read(5, 47)
    np.testing.assert_array_equal(images, IMAGES[5:47])
    assert (labels == -1).all()
    assert verify(store) == []


def test_a_corrupted_file_does_not_hinder_the_next_commit(store):
    """Zarr reads the index of a shard before it writes it."""
    before, [images, _] = store.digest(), store.shard_files(1)
    content = images.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 5, len(content) - 1):
        images.write_bytes(content[:length])
        store.forget(1)
        fill(store, [1])
        assert store.digest() == before


def test_a_buffer_holds_the_same_pairs(store, tmp_path):
    buffers = Buffers(tmp_path / "flat", limit=0)
    for _ in range(2):  # as a killed training finds it
        for found, expected in zip(store.read_all(buffers)[:2], store.read_all()[:2], strict=True):
            assert isinstance(found, np.memmap)
            np.testing.assert_array_equal(found, expected)


def test_digest_does_not_depend_on_order(store, tmp_path):
    other = fill(PairStore.create(tmp_path / "other.zarr", spec_for(), 60), [2, 0, 1])
    assert other.digest() == store.digest()
    changed = PairStore.create(tmp_path / "changed.zarr", spec_for(), 60)
    images = IMAGES.copy()
    images[31, 0, 0, 0] ^= 1
    for k in range(3):
        changed.commit(k, Pairs(images[20 * k : 20 * k + 20], NO_LABELS, None))
    assert changed.digest() != store.digest()


def test_a_shard_without_marker_does_not_exist(store):
    (store.path / "commits" / "000001.json").unlink()
    again = PairStore.open(store.path)
    assert again.missing() == [1]
    with pytest.raises(UserError, match="shard 1 is missing"):
        again.read(0, 60)
    assert verify(again) == ["shard 1 is missing"]


def test_black_images_are_stored_like_any_other(tmp_path):
    """Zarr leaves out chunks equal to the fill value unless told not to."""
    store = PairStore.create(tmp_path / "black.zarr", spec_for(), 20)
    store.commit(0, Pairs(np.zeros((20, 1, 8, 8), np.uint8), NO_LABELS, None))
    assert all(path.exists() for path in store.shard_files(0))
    assert verify(store) == []


def test_a_flipped_bit_is_never_read_silently(store):
    flip_a_bit(store.shard_files(1)[0])
    with pytest.raises(UserError, match="shard 1 is corrupted"):
        PairStore.open(store.path).read(0, 60)


@pytest.mark.parametrize("name", ["zarr.json", "images/zarr.json", "labels/zarr.json"])
@pytest.mark.parametrize("corrupt", [lambda p: p.write_text(""), lambda p: p.unlink()])
def test_metadata_can_be_rebuilt(store, name, corrupt):
    before = store.digest()
    corrupt(store.path / name)
    with pytest.raises(UserError):
        PairStore.create(store.path, spec_for(), 60)
    rebuild_metadata(store.path, spec_for(), 60)
    again = PairStore.create(store.path, spec_for(), 60)
    assert again.digest() == before
    assert verify(again) == []


def test_a_committed_shard_is_left_as_it_is(store):
    """A call that was given up may still run, and end late."""
    files = store.shard_files(1)
    inodes = [path.stat().st_ino for path in files]
    fill(store, [1])
    assert [path.stat().st_ino for path in files] == inodes


def test_another_seed_is_refused_on_opening(store):
    """A wrong seed would silently pair images with unrelated noise."""
    meta = store.path / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["rfpp"]["seed"] = 8
    meta.write_text(json.dumps(document))
    with pytest.raises(UserError, match="not that of seed 8"):
        PairStore.open(store.path)


@pytest.mark.parametrize("change", [{"noise": "pcg64"}, {"noise_kind": "other"}, {"format": 2}])
def test_noise_and_formats_of_other_versions_are_refused(store, change):
    meta = store.path / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["rfpp"].update(change)
    meta.write_text(json.dumps(document))
    with pytest.raises(UserError, match="this version"):
        PairStore.open(store.path)


def test_pairs_of_another_spec_are_refused(store):
    with pytest.raises(UserError, match="nfe 3 instead of 5"):
        PairStore.create(store.path, spec_for(nfe=5), 60)


def test_a_larger_store_begins_with_the_same_shards(store):
    files = [path.read_bytes() for path in store.shard_files(2)]
    larger = PairStore.create(store.path, spec_for(), 100)
    assert (larger.n, larger.missing()) == (100, [3, 4])
    assert [path.read_bytes() for path in larger.shard_files(2)] == files
    np.testing.assert_array_equal(larger.read(0, 60)[0], IMAGES)


def test_publishing_a_prefix(store, tmp_path):
    target = tmp_path / "out" / "pairs.zarr"
    target.parent.mkdir()
    store.publish(target, 40)
    published = PairStore.open(target)
    assert (published.n, published.missing(), verify(published)) == (40, [], [])
    prefix = fill(PairStore.create(tmp_path / "prefix.zarr", spec_for(), 40), [0, 1])
    assert published.digest() == prefix.digest()
    store.publish(target, 60)
    assert PairStore.open(target).n == 60
    assert sorted(path.name for path in target.parent.iterdir()) == ["pairs.zarr"]


def test_an_unfinished_store_is_not_published(store, tmp_path):
    (store.path / "commits" / "000000.json").unlink()
    with pytest.raises((UserError, FileNotFoundError)):
        PairStore.open(store.path).publish(tmp_path / "out.zarr", 60)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("content", [None, "text", '{"zarr_format": 3, "node_type": "group"}'])
def test_what_is_not_a_store_is_refused(tmp_path, content):
    path = tmp_path / "x.zarr"
    if content:
        path.mkdir()
        (path / "zarr.json").write_text(content)
    with pytest.raises(UserError):
        PairStore.open(path)


def test_stored_noise_is_read_verified_and_part_of_the_digest(tmp_path):
    """Noise that has no seed is stored as float32; the last shard may be short."""
    spec = spec_for(noise_kind="stored", source="s" * 64)
    noise = np.random.default_rng(1).normal(size=(50, 1, 8, 8)).astype(np.float32)
    labels = np.arange(50, dtype=np.int16)
    store = PairStore.create(tmp_path / "pairs.zarr", spec, 50)
    assert store.missing() == [0, 1, 2]
    for k in (2, 0, 1):
        here = slice(*store.span(k))
        store.commit(k, Pairs(IMAGES[here], labels[here], noise[here]))
    store.publish(tmp_path / "out.zarr", 50)
    read = PairStore.open(tmp_path / "out.zarr")
    assert read.digest() == store.digest()
    for found, expected in zip(read.read_all(), (IMAGES[:50], labels, noise), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert verify(read) == []
    changed = noise.copy()
    changed[45, 0, 3, 3] += 1e-3
    other = PairStore.create(tmp_path / "other.zarr", spec, 50)
    for k in (0, 1, 2):
        here = slice(*other.span(k))
        other.commit(k, Pairs(IMAGES[here], labels[here], changed[here]))
    assert other.digest() != store.digest()
    file = read.shard_files(2)[2]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # a link: the original stays as it is
    file.write_bytes(data)
    assert "noise/c/2/0/0/0 is not what was committed" in verify(read)[0]
    assert verify(store) == []
