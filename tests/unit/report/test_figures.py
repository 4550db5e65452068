"""The figures: what goes on which axis, and their files."""

import numpy as np
import pytest
from PIL import Image

from pipeline.report import figures
from tests.unit.report import fakes


@pytest.mark.parametrize("case", fakes.CASES)
def test_figures_are_transparent_and_as_large_as_they_say(run, case, tmp_path):
    found = run(fakes.CASES[case]())
    made = [figures.distance(tmp_path, net, found) for net in found.config.features.nets]
    made += [figures.losses(tmp_path, found), figures.training_times(tmp_path, found.config)]
    assert made[0].file == "distance.png"
    assert len({figure.file for figure in made}) == len(made)
    for figure in made:
        with Image.open(tmp_path / figure.file) as image:
            assert image.size == (figure.width, figure.height)
            assert np.asarray(image)[0, 0, 3] == 0


def test_losses_of_one_kind_share_an_axis_and_others_do_not(run):
    panels = figures.loss_panels(run(fakes.several(4)))
    assert panels["l2"] == ("l2", ["flow1"])
    assert panels["pseudo_huber"][1] == [f"way{i}_with_a_long_name" for i in (1, 2, 3)]


def test_a_loss_of_two_terms_has_an_axis_for_each(run):
    """Its distance is weighted by 1 - t, so it is no plain one; the import has no loss."""
    assert figures.loss_panels(run(fakes.imported())) == {
        "pseudo_huber, of pseudo_huber + lpips": ("pseudo_huber", ["flow2"]),
        "lpips, of pseudo_huber + lpips": ("lpips", ["flow2"]),
    }


def test_nothing_is_drawn_where_nothing_was_trained(run, tmp_path):
    document = fakes.imported()
    document["flows"] = {"flow1": fakes.FLOW1}
    document["pairs"] = {}
    found = run(document)
    assert figures.losses(tmp_path, found) is None
    assert figures.training_times(tmp_path, found.config) is None


def test_points_that_cannot_be_drawn_are_left_out(run, tmp_path):
    found = run(fakes.changed())
    for row in found.tables["flow1"]:
        row["fd_classifier"] = ""
    figures.distance(tmp_path, "classifier", found)


@pytest.mark.parametrize("length", [5, 53, 55, 64, 200])
def test_labels_fit_the_figure(length):
    assert len(figures.shorten("x" * length)) <= figures.LETTERS - 8
