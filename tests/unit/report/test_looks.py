"""Colours that can be told apart, by everybody, on white and on black."""

import itertools

import numpy as np
import pytest

from pipeline.report import looks

# Severe colour blindness on linear RGB (Machado et al., 2009).
SIGHT = {
    "usual": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def oklab(rgb):
    """Ottosson's perceptual space, times 100."""
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    axes = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return 100 * np.array(axes) @ np.cbrt(np.array(cones) @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("colour", [*looks.COLOURS, looks.NEUTRAL])
@pytest.mark.parametrize("paper", [looks.PAPER, looks.NIGHT])
def test_lines_stand_out_from_the_page(colour, paper):
    """By a contrast of 3, which WCAG asks for graphics."""
    dark, bright = sorted((luminance(colour), luminance(paper)))
    assert (bright + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ_however_one_sees(sight):
    seen = [oklab(np.array(SIGHT[sight]) @ linear(colour)) for colour in looks.COLOURS]
    gaps = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)]
    assert min(gaps) > 6  # some three times what is just noticed
    first = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen[:4], 2)]
    assert min(first) > 10


def test_flows_look_different_up_to_thirty_two():
    found = looks.looks(f"flow{i}" for i in range(32))
    assert len(set(found.values())) == 32
    assert {look.dash for look in list(found.values())[:8]} == {"-"}
    assert found["flow8"].colour == found["flow0"].colour
    assert found["flow8"].border == "dashed"
