"""The grids: their sizes, their rows, and the one of real images."""

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.report import pictures
from rfpp_core.images import store as image_store
from tests.unit.report import fakes


@pytest.mark.parametrize("case", fakes.CASES)
def test_every_grid_has_the_size_of_its_file(run, case, tmp_path):
    found = run(fakes.CASES[case]())
    grids = [grid for flow in found.flows for grid in pictures.of_flow(flow, found)]
    for grid in grids:
        with Image.open(tmp_path / "samples" / grid.file) as image:
            assert image.size == (grid.width, grid.height)
    labels = [grid.label for grid in pictures.of_flow("flow1", found)]
    assert labels == ["1", "2", "8", "35", "path"]


def test_rows_are_named_by_class_where_the_flow_sees_labels(run):
    found = run(fakes.conditional())
    for grid in pictures.of_flow("flow2", found):
        assert grid.rows == ["zero", "one", "two"] * 2 + ["zero", "one"]
    assert pictures.of_flow("flow1", run_again(found))[0].rows == []


def run_again(found):
    """The same run by flows that see no labels."""
    for model in found.models.values():
        model.metadata["architecture"]["classes"] = 0
    return found


def test_many_classes_have_sixteen_rows(run):
    found = run(fakes.conditional(), classes=tuple(f"c{i}" for i in range(30)))
    grid, *_, path = pictures.of_flow("flow1", found)
    assert grid.rows == [f"c{i}" for i in range(16)]
    assert len(path.rows) == 8


def test_classes_that_the_images_lack_are_numbered(run):
    found = run(fakes.conditional())
    found.models["flow1"].metadata["architecture"]["classes"] = 8
    assert pictures.of_flow("flow1", found)[0].rows == [
        "zero", "one", "two", *(f"class {i}" for i in range(3, 8))
    ]  # fmt: skip


def cell(image, row, column, side=8, scale=4):
    """One image of a grid, as it was before it was enlarged."""
    step = side * scale + 2
    top, left = 2 + row * step, 2 + column * step
    return np.asarray(image.convert("L"))[
        top : top + side * scale : scale, left : left + 32 : scale
    ]


def test_the_grid_of_real_images_has_a_class_a_row(run, tmp_path):
    found = run(fakes.changed())
    grid = pictures.real(tmp_path, found)
    assert grid.rows == ["zero", "one", "two"]
    train = image_store.read(artifacts.IMAGES, "train")
    with Image.open(tmp_path / grid.file) as image:
        for row in range(3):
            members = train.images[train.labels == row][:, 0]
            shown = [cell(image, row, column) for column in range(8)]
            places = [np.flatnonzero((members == one).all((1, 2)))[0] for one in shown]
            assert places == sorted(places)  # spread over the class
            assert (places[0], places[-1]) == (0, len(members) - 1)


def test_places_without_an_image_are_grey(run, tmp_path):
    """Twelve classes of four training images each, so half of a row is empty."""
    found = run(fakes.changed(), classes=tuple(f"c{i}" for i in range(12)))
    grid = pictures.real(tmp_path, found)
    with Image.open(tmp_path / grid.file) as image:
        assert (cell(image, 0, 7) == 128).all()
        assert not (cell(image, 0, 3) == 128).all()


def test_images_without_labels_are_spread_over_the_set(run, tmp_path):
    grid = pictures.real(tmp_path, run(fakes.unlabelled()))
    assert grid.rows == []
    assert grid.height == 2 + 6 * 66  # 48 training images


def test_images_of_many_blocks_come_in_their_order(monkeypatch, run):
    run(fakes.changed())
    whole = image_store.read(artifacts.IMAGES, "train").images
    monkeypatch.setattr(pictures, "BLOCK", 7)
    wanted = [40, 3, 4, 11, 20, 0]
    for i, image in zip(wanted, pictures._read(wanted), strict=True):
        np.testing.assert_allclose(image * 127.5 + 127.5, whole[i], atol=1e-3)
