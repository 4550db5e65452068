"""The store that the tests here share."""

import pytest

from rfpp_core.pairs.store import PairStore
from tests.helpers import spec_for
from tests.unit.pairs.small import fill


@pytest.fixture
def store(tmp_path):
    return fill(PairStore.create(tmp_path / "pairs.zarr", spec_for(), 60), [0, 1, 2])
