import hashlib
import math

import numpy as np
import pytest
import torch

from rfpp_core import rng
from rfpp_core.rng.philox import philox, philox4x32

# Random123's kat_vectors for philox4x32, 10 rounds
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
GOLDEN = "8cb520999127f5d9c7a93c711f3fca0863538dccaa198ae0bd9edee5fe5461ca"


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    got = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in got) == words


def test_golden_digest_of_pair_noise():
    index = torch.tensor([0, 1, 999, 2**33 + 7])
    z = rng.normal(12345, index, (3, 32, 32))
    assert hashlib.sha256(z.numpy().tobytes()).hexdigest() == GOLDEN


def test_box_muller_against_the_math_library():
    index = torch.arange(50)
    z = rng.normal(3, index, (4,)).double()
    w = [t.double() for t in philox(index << 20, 3)]
    r, angle = torch.sqrt(-2 * torch.log((w[0] + 0.5) / 2**32)), 2 * math.pi * w[1] / 2**32
    torch.testing.assert_close(z[:, 0], r * torch.cos(angle), rtol=0, atol=1e-6)
    torch.testing.assert_close(z[:, 1], r * torch.sin(angle), rtol=0, atol=1e-6)


def test_moments():
    z = rng.normal(0, torch.arange(4000), (4, 8, 8)).double()
    assert abs(float(z.mean())) < 5e-3
    assert abs(float(z.var()) - 1) < 5e-3
    assert abs(float((z**4).mean()) - 3) < 0.05
    assert abs(float((z[:, 0] * z[:, 1]).mean())) < 1e-2


def test_a_draw_depends_on_its_index_alone():
    whole = rng.normal(5, torch.arange(10), (2, 3))
    assert torch.equal(rng.normal(5, torch.tensor([7, 2]), (2, 3)), whole[[7, 2]])
    assert not torch.equal(rng.normal(6, torch.arange(10), (2, 3)), whole)


def test_labels_are_uniform_and_in_range():
    y = rng.labels(1, torch.arange(20_000), 10)
    counts = torch.bincount(y, minlength=10)
    assert len(counts) == 10
    assert float(((counts - 2000.0) ** 2 / 2000).sum()) < 27.9  # chi-square, 9 dof, p = 0.001


def test_permutation():
    a, b = rng.permutation(1, 0, 1000), rng.permutation(1, 1, 1000)
    assert sorted(a.tolist()) == list(range(1000))
    assert not torch.equal(a, b)
    assert abs(np.corrcoef(a.numpy(), np.arange(1000))[0, 1]) < 0.15


def test_draws_of_ranks_are_slices_of_the_whole():
    whole = rng.StepRNG(1, 5, 8)
    parts = [rng.StepRNG(1, 5, 8, start, start + 4) for start in (0, 4)]
    assert torch.equal(whole.uniform("t"), torch.cat([p.uniform("t") for p in parts]))
    assert torch.equal(whole.normal("z", (2,)), torch.cat([p.normal("z", (2,)) for p in parts]))
    assert not torch.equal(whole.uniform("t"), whole.uniform("u"))
    assert not torch.equal(whole.uniform("t"), rng.StepRNG(1, 6, 8).uniform("t"))


def test_too_large_a_draw_is_refused():
    with pytest.raises(ValueError, match="exceeds"):
        rng.normal(0, torch.arange(1), (2**21 + 1,))
