import pytest

from rfpp_core import rng
from rfpp_core.pairs import markers
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify, wrong_with
from tests.unit.pairs.small import flip_a_bit


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (flip_a_bit, "not what was committed"),
        (lambda path: path.write_bytes(b""), "not what was committed"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "not what was committed"),
        (lambda path: path.unlink(), "missing"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_corruption_is_named(store, corrupt, message, which):
    corrupt(store.shard_files(1)[which])
    [line] = verify(PairStore.open(store.path))
    assert line.startswith("shard 1: ")
    assert message in line


def test_pairs_that_are_not_those_committed_are_named(store):
    """Files as their digests say, but of other content."""
    path = store.path / "commits" / "000001.json"
    markers.write(path, {**markers.read(path), "pairs_sha256": "0" * 64})
    assert wrong_with(store, 1) == ["shard 1: its pairs are not those committed"]
    assert wrong_with(store, 0) == []
    assert verify(store) == ["shard 1: its pairs are not those committed"]


def test_noise_that_repeats_or_is_not_standard_normal_is_named(store, monkeypatch):
    draw = rng.normal
    monkeypatch.setattr(
        "rfpp_core.rng.normal", lambda key, index, shape: draw(key, index % 30, shape)
    )
    assert verify(store) == ["shard 1 repeats noise", "shard 2 repeats noise"]
    monkeypatch.setattr("rfpp_core.rng.normal", lambda *args: 2 * draw(*args))
    [line] = verify(store)
    assert line.startswith("noise has mean ")
    assert line.endswith("not 0 and 1")
