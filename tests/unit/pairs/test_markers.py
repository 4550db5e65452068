import json

import pytest

from rfpp_core.errors import Corrupted
from rfpp_core.pairs import markers
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify


def test_every_digit_of_a_marker_is_checked(store):
    marker = store.path / "commits" / "000001.json"
    text = marker.read_text()
    for at in (i for i, c in enumerate(text) if c.isdigit()):
        marker.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        assert markers.read(marker) is None
    marker.write_text(text)
    assert markers.read(marker) is not None
    (marker.parent / "000001 (copy).json").write_text(text)
    assert PairStore.open(store.path).committed() == [0, 1, 2]


def test_an_edited_marker_is_named(store):
    marker = store.path / "commits" / "000002.json"
    document = json.loads(marker.read_text())
    marker.write_text(json.dumps({**document, "pairs_sha256": "0" * 64}))
    [line] = verify(store)
    assert line.startswith("shard 2: ")
    assert "000002.json is corrupted" in line
    with pytest.raises(Corrupted, match="is corrupted") as error:
        PairStore.open(store.path)
    assert error.value.files == (marker,)
    assert markers.drop_bad(store.path) == [2]
    assert PairStore.open(store.path).missing() == [2]
