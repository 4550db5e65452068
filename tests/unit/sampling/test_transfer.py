"""A flow that starts from images: its initial states, and what it refuses."""

import pytest
import torch

from rfpp_core import rng
from rfpp_core.config import build
from rfpp_core.errors import UserError
from rfpp_core.sampling.flow import Flow
from rfpp_core.sampling.sampler import SamplerConfig
from rfpp_core.sampling.transfer import Transfer, as_transfer, with_source
from rfpp_core.storage import checkpoint
from tests.helpers import save_tiny

N = 7
EULER = SamplerConfig("euler", 2)


def named(path, domains) -> None:
    """Puts domains into a model file."""
    found = checkpoint.load(path)
    checkpoint.save(path, found.tensors, {**found.metadata, "domains": domains})


@pytest.fixture
def flow(tmp_path) -> Transfer:
    path = save_tiny(tmp_path / "flow.safetensors")
    named(path, {"source": [0, 1], "target": [2]})
    found = build.load_flow(path)
    assert isinstance(found, Transfer)
    return found


@pytest.fixture
def given(flow) -> Transfer:
    images = torch.arange(N).reshape(N, 1, 1, 1).expand(N, 1, 8, 8) / N
    return with_source(flow, images.contiguous())


def numbers(states: torch.Tensor) -> list[int]:
    return (states[:, 0, 0, 0] * N).round().int().tolist()


def test_every_round_of_states_has_each_source_image_once(given):
    found = numbers(given.states(3, torch.arange(3 * N)))
    rounds = [found[:N], found[N : 2 * N], found[2 * N :]]
    assert all(sorted(one) == list(range(N)) for one in rounds)
    assert rounds[0] != rounds[1]


def test_a_state_is_a_function_of_key_and_index(given):
    whole = given.states(3, torch.arange(2 * N))
    assert torch.equal(given.states(3, torch.tensor([9, 2])), whole[[9, 2]])
    assert not torch.equal(given.states(4, torch.arange(2 * N)), whole)


def test_what_is_drawn_is_the_translation_of_the_states(given):
    found = given.from_noise_key(3, 2 * N, EULER)
    torch.testing.assert_close(found, given.decode(given.states(3, torch.arange(2 * N)), EULER))


def test_without_images_nothing_is_drawn_and_the_line_names_the_command(flow):
    for draw in (lambda: flow.sample(3), lambda: flow.from_noise_key(0, 3, EULER),
                 lambda: flow.states(0, torch.arange(3))):  # fmt: skip
        with pytest.raises(UserError, match=r"classes 0, 1 to classes 2, .*`rfpp transfer IMAG"):
            draw()


def test_a_flow_without_domains_is_left_as_it_is_and_starts_from_noise(tmp_path):
    flow = build.load_flow(save_tiny(tmp_path / "flow.safetensors"))
    assert type(flow) is Flow
    assert as_transfer(flow) is flow
    index = torch.arange(4)
    assert torch.equal(flow.states(5, index), rng.normal(5, index, flow.shape))


@pytest.mark.parametrize(
    "domains", [[], {}, {"source": [0]}, {"source": [], "target": [1]}, {"source": 0, "target": 1},
                {"source": ["0"], "target": [1]}, "0"],
)  # fmt: skip
def test_other_domains_in_a_model_file_are_refused_in_one_line(tmp_path, domains):
    path = save_tiny(tmp_path / "flow.safetensors")
    named(path, domains)
    with pytest.raises(UserError, match="must be lists of labels") as error:
        build.load_flow(path)
    assert "\n" not in str(error.value)
