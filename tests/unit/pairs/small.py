"""A small store of three shards that the tests here share."""

import numpy as np

from rfpp_core.pairs.spec import Pairs

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
NO_LABELS = np.full(20, -1, np.int16)


def fill(store, shards):
    for k in shards:
        store.commit(k, Pairs(IMAGES[20 * k : 20 * k + 20], NO_LABELS, None), device="cpu")
    return store


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
