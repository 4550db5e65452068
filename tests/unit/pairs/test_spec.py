import torch

from rfpp_core import rng
from tests.helpers import spec_for


def test_noise_and_labels_are_functions_of_seed_and_index():
    spec = spec_for(classes=10)
    index = torch.tensor([3, 50])
    assert torch.equal(spec.z(index), rng.normal(7, index, (1, 8, 8)))
    assert torch.equal(spec.y(index), rng.labels(7, index, 10))
    assert spec_for().y(index) is None


def test_a_new_field_at_its_default_changes_no_identity():
    assert not spec_for().identity.keys() & {"start", "source", "noise_kind", "format"}
    assert spec_for(start=80 / 81).identity["start"] == 80 / 81
    assert spec_for().document.keys() > spec_for().identity.keys()


def test_differences_are_named():
    assert spec_for(nfe=5).differences(spec_for()) == "nfe 5 instead of 3"


def test_the_digest_of_a_shard_s_first_noise_depends_on_seed_and_shard():
    digests = [
        spec_for().noise_digest(0),
        spec_for().noise_digest(1),
        spec_for(seed=8).noise_digest(0),
    ]
    assert len(set(digests)) == 3
    assert spec_for(noise_kind="stored").noise_digest(0) == ""
