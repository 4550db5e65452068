"""What the report says in words."""

import json
import math

import pytest

from pipeline import artifacts
from pipeline.report import facts, results
from rfpp_core.errors import UserError
from tests.unit.report import fakes


def test_the_first_paragraph_sets_the_last_flow_beside_its_teacher(run):
    lead = facts.lead(run(fakes.changed()))
    assert (lead.flow, lead.teacher, lead.few, lead.many) == ("flow2", "flow1", 1, 35)
    assert (lead.distance, lead.floor) == (2.5, 0.5)
    assert lead.ratio == pytest.approx(4)
    assert lead.of_teacher == (18, 1)
    assert lead.straighter == pytest.approx(2)


def test_a_single_flow_is_measured_by_itself(run):
    lead = facts.lead(run(fakes.one()))
    assert (lead.flow, lead.teacher, lead.distance, lead.own) == ("flow1", None, 18, 1)
    assert lead.ratio == pytest.approx(35)


def test_what_was_not_measured_stops_nothing(run):
    found = run(fakes.changed())
    found.metrics["flow2"]["straightness"] = None
    found.tables["flow2"][0]["fd_classifier"] = ""
    lead = facts.lead(found)
    assert math.isnan(lead.straighter)
    assert math.isnan(lead.ratio)


def of_images(run, document, **changes):
    found = run(document)
    summary = json.loads(artifacts.SUMMARY.read_text()) | changes
    return dict(facts.images(found._replace(summary=summary)))


def test_the_images_are_described(run):
    said = of_images(run, fakes.changed())
    assert said == {
        "Images": "48 to train on, 12 held out (20% of each class, drawn by dataset.seed)",
        "As trained on": "8 × 8 pixels, grey",
        "As found": "60 grey; all of 8 × 8 pixels",
        "Left out": "nothing",
    }


def test_what_was_left_out_or_changed_is_said(run):
    said = of_images(
        run, fakes.unlabelled(), skipped=2, ignored={".txt": 3, ".db": 1}, transparent=4,
        animated=1, grey=60, split="given", modes={"RGBA": 4, "RGB": 50, "XYZ": 6},
        sizes={"least": [10, 20], "most": [30, 20], "common": {"size": [30, 20], "count": 9}},
    )  # fmt: skip
    assert said["Left out"] == ("2 unreadable images skipped; files that are no images: 3 .txt, "
                                "1 .db")  # fmt: skip
    assert said["Changed"] == ("4 with transparency, composited on white; 1 with several frames, "
                               "of which the first is taken")  # fmt: skip
    assert said["As found"] == ("50 colour, 6 XYZ, 4 colour with transparency; from 10 × 20 to "
                                "30 × 20 pixels, most often 30 × 20 (9)")  # fmt: skip
    assert "the set's own split" in said["Images"]
    assert "dataset.channels: 1" in said["Hint"]


def test_classes_are_listed_up_to_a_number(run):
    found = run(fakes.changed(), classes=tuple(f"c{i}" for i in range(45)))
    assert facts.classes(found)[:2] == [("c0", "2 + 0"), ("c1", "2 + 0")]
    assert len(facts.classes(found)) == facts.SHOWN
    assert len(found.class_names) == 45


@pytest.mark.parametrize(
    ("case", "net", "part"),
    [
        ("two flows", "classifier", "97.0% of the held-out images"),
        ("imported teacher", "inception", "Published FIDs take 50,000 samples"),
        ("imported teacher", "inception", "both know ImageNet"),
        ("without labels", "pixels", "A last resort"),
    ],
)
def test_what_must_be_said_beside_a_feature_net(run, case, net, part):
    assert part in " ".join(facts.said_of(net, run(fakes.CASES[case]())))


def test_a_complete_run_of_cifar10_is_set_beside_published_numbers(run):
    document = fakes.imported()
    document["evaluate"] = {**document["evaluate"], "n": 50_000}
    assert "Published" not in " ".join(facts.said_of("inception", run(document)))


def test_missing_cells_are_no_numbers():
    assert math.isnan(results.number({"x": ""}, "x"))
    assert math.isnan(results.number({}, "x"))


def test_a_stage_that_has_not_run_is_named(run):
    found = run(fakes.changed())
    artifacts.table("flow1").unlink()
    with pytest.raises(UserError, match=r"flow1\.csv is missing; run `dvc repro`"):
        results.read(found.config)
