"""What of a coupling's options is refused, in one line, and what is legal."""

from __future__ import annotations

import pytest

from rfpp_core.config import params
from tests.unit.config.rows import changed, refused


def pretrain(**options):
    return changed(*((f"recipes.pretrain.{name}", value) for name, value in options.items()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coupling": "optimal"}, "'independent', 'dansm' or 'ot'"),
        ({"coupling": "dansm", "match": 1000},
         "recipes.pretrain: match (1000) must be a multiple of batch (64), such as 960 or 1024"),
        ({"coupling": "dansm", "match": 10}, "of batch (64), such as 64"),
        ({"coupling": "ot", "match": 2048},
         "ot assigns at most 1024 images at a time, not 2048; lower match, or take coupling: da"),
        ({"coupling": "ot", "batch": 1280}, "not 1280; lower batch, or take coupling: dansm"),
        ({"coupling": "dansm", "match": -64}, "match is -64: input should be greater than or eq"),
        ({"coupling": "dansm", "mix": 0.5},
         "coupling: dansm matches whole batches of real images, so mix must be 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_refused_in_a_line(options, said):
    assert said in refused(pretrain(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": "dansm"},
        {"coupling": "dansm", "match": 6400},
        {"coupling": "ot"},
        {"coupling": "ot", "match": 1024},
        {"match": 1000},  # of no effect
    ],
)
def test_what_can_be_matched_is_legal(options):
    params.parse(pretrain(**options))
