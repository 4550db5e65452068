"""``rfpp pairs``: stores are checked, repaired and identified."""

from rfpp_core.pairs.store import PairStore


def test_pairs(here, rfpp):
    done = rfpp("pairs", "verify", "pairs.zarr", cwd=here)
    assert (done.returncode, done.stdout) == (0, "pairs.zarr: 40 pairs in 2 shards, all right\n")
    digest = rfpp("pairs", "digest", "pairs.zarr", cwd=here).stdout
    assert digest == PairStore.open(here / "pairs.zarr").digest() + "\n"
    PairStore.open(here / "pairs.zarr").shard_files(1)[0].write_bytes(b"")
    done = rfpp("pairs", "verify", "pairs.zarr", cwd=here)
    assert done.returncode == 2
    assert "shard 1" in done.stderr
    (here / "pairs.zarr/commits/000000.json").write_text("{}")
    done = rfpp("pairs", "verify", "--repair", "pairs.zarr", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "forgot shard(s) 0, 1; `dvc repro` regenerates them" in done.stdout
    assert PairStore.open(here / "pairs.zarr").missing() == [0, 1]
