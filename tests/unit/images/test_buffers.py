"""Arrays in memory and in memory-mapped files are the same."""

import numpy as np
import pytest

from rfpp_core.errors import UserError
from rfpp_core.images.buffers import Buffers, in_memory

LAYOUT = {"images": ((6, 1, 2, 2), "uint8"), "noise": ((6, 1, 2, 2), "float32")}
BYTES = 6 * 4 + 6 * 4 * 4


def test_small_sets_stay_in_memory(tmp_path):
    arrays, empty = Buffers(tmp_path / "flat", limit=BYTES).arrays(LAYOUT)
    assert empty
    assert not any(isinstance(array, np.memmap) for array in arrays.values())
    assert not (tmp_path / "flat").exists()


def test_large_sets_are_files_that_other_processes_find_full(tmp_path):
    mine, empty = Buffers(tmp_path / "flat", limit=BYTES - 1).arrays(LAYOUT)
    assert empty
    mine["noise"][:] = np.arange(24).reshape(6, 1, 2, 2)
    theirs, empty = Buffers(tmp_path / "flat", BYTES - 1, fills=False).arrays(LAYOUT)
    assert not empty
    for name, (shape, dtype) in LAYOUT.items():
        assert isinstance(theirs[name], np.memmap)
        assert (theirs[name].shape, theirs[name].dtype) == (shape, dtype)
        np.testing.assert_array_equal(theirs[name], mine[name])
    assert sum(path.stat().st_size for path in (tmp_path / "flat").iterdir()) == BYTES


def test_a_full_disk_is_known_before_anything_is_mapped(tmp_path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        Buffers(tmp_path / "flat", limit=0).arrays({"images": ((2**61,), "uint8")})


def test_a_set_that_no_memory_holds_is_one_line():
    with pytest.raises(UserError, match="does not fit into memory"):
        in_memory({"images": ((2**45, 3, 64, 64), "uint8")})
