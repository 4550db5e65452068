"""Everything that can be wrong with a pair store, read from end to end."""

from __future__ import annotations

from rfpp_core.errors import UserError
from rfpp_core.pairs.noise_check import NoiseCheck
from rfpp_core.pairs.store import PairStore


def verify(store: PairStore) -> list[str]:
    """Everything wrong with a store, a line each; empty if all is right.

    Reads every shard, compares digests of files and content with the markers, and checks that
    seeded noise is standard normal and no sample there twice.
    """
    wrong = [f"shard {k} is missing" for k in store.missing()]
    noise = NoiseCheck()
    for k in store.committed():
        wrong += wrong_with(store, k)
        if store.spec.stored:  # not drawn from the prior; the digest covers it
            continue
        repeated = [noise.add(part) for part in store.spec.noise_parts(*store.span(k))]
        if any(repeated):
            wrong.append(f"shard {k} repeats noise")
    if noise.values and not noise.normal:
        wrong.append(
            f"noise has mean {noise.mean:.4f} and standard deviation {noise.std:.4f}, not 0 and 1"
        )
    return wrong


def wrong_with(store: PairStore, k: int) -> list[str]:
    """What is wrong with the files and the content of a committed shard."""
    try:
        if wrong := store.corruption(k):
            return [f"shard {k}: {wrong}"]
        if store.read(*store.span(k)).digest != store.marker(k)["pairs_sha256"]:
            return [f"shard {k}: its pairs are not those committed"]
    except UserError as error:
        return [f"shard {k}: {error}"]
    return []
