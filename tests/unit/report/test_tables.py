"""The tables as plain data, on numbers made by hand."""

import math

import numpy as np
import pytest

from pipeline.report import facts, numbers, tables
from rfpp_core.config import params
from tests.unit.report import fakes


def texts(rows):
    return [[cell.text for cell in row] for row in rows]


def column(table, name, group):
    """A column of a group, whose first row of a flow has its name."""
    place = table.head.index(name) - len(table.head)
    return [row[place].text for row in table.groups[group].rows]


def test_excess_is_a_multiple_of_the_teachers_at_many_evaluations(run):
    """Floor 0.5; teacher 18, 9.25, 2.6875 and 1.0 at 35; pupil 2.5, 1.5, 0.75, 0.5571."""
    found = run(fakes.changed())
    assert tables.excess(2.5, "flow2", "classifier", found) == pytest.approx(4)
    table = tables.distances("classifier", found)
    assert column(table, "excess", 1) == ["35.0×", "17.5×", "4.38×", "1.00×"]
    assert column(table, "excess", 2) == ["4.00×", "2.00×", "0.500×", "0.114×"]


def test_a_flow_of_the_third_generation_is_measured_by_its_own_teacher(run):
    pairs3 = {**fakes.PAIRS, "teacher": "flow2"}
    flow3 = {**fakes.FLOW2, "data": "pairs3", "start": "flow2"}
    found = run(fakes.changed(pairs={"pairs2": fakes.PAIRS, "pairs3": pairs3},
                              flows={**fakes.TWO["flows"], "flow3": flow3}))  # fmt: skip
    of_flow2 = fakes.distance(1, 35) - fakes.FLOOR
    assert tables.excess(fakes.FLOOR + of_flow2, "flow3", "classifier", found) == pytest.approx(1)


def test_there_is_no_multiple_where_the_teacher_reaches_the_floor(run):
    found = run(fakes.changed())
    for row in found.tables["flow1"]:
        row["fd_classifier"] = "0.4"
    assert math.isnan(tables.excess(2.5, "flow2", "classifier", found))
    table = tables.distances("classifier", found)
    assert set(column(table, "excess", 2)) == {numbers.MISSING}
    assert "no excess to measure by" in " ".join(facts.said_of("classifier", found))


def test_rows_are_grouped_by_data_and_by_budget(run):
    found = run(fakes.several(6))  # of 100, 200 and 300 updates of 8 images
    titles = [group.title for group in tables.distances("classifier", found).groups]
    pairs = "Trained on pairs2 (2,000 pairs by flow1: midpoint, 18 evaluations)"
    assert titles == ["Real images", "Trained on the real images; budget 4,800",
                      f"{pairs}; budget 38,400", f"{pairs}; budget 40,800",
                      f"{pairs}; budget 43,200"]  # fmt: skip
    groups = [[name[:4] for name in flows] for flows in tables.grouped(found).values()]
    assert groups == [["flow"], ["way3"], ["way1", "way4"], ["way2", "way5"]]


@pytest.mark.parametrize("case", fakes.CASES)
def test_every_row_fits_its_head(run, case):
    found = run(fakes.CASES[case]())
    every = [tables.distances(net, found) for net in found.config.features.nets]
    for table in [*every, tables.properties(found), tables.costs(found)]:
        for group in table.groups:
            left = 0  # rows that a name above still spans
            for row in group.rows:
                assert len(row) + (left > 0) == len(table.head)
                left = row[0].rows - 1 if left == 0 else left - 1
            assert left == 0


def test_real_rows_have_what_can_be_measured_of_them(run):
    found = run(fakes.changed())
    floor, held_out = texts(tables.distances("classifier", found).groups[0].rows)
    none = numbers.MISSING
    assert floor == ["floor: training images", "", "", "0.5000", "", "0.7000", none, none, none,
                     "100 × 2"]  # fmt: skip
    assert held_out[3:] == ["0.8000", "", "0.2000", "1.000", "0.9000", "0.8000", "100 × 2"]


def test_agreement_stands_beside_that_of_held_out_images(run):
    table = tables.distances("classifier", run(fakes.conditional()))
    assert column(table, "agreement", 0) == [numbers.MISSING, "0.9700"]
    assert column(table, "agreement", 2)[0] == "0.8800"


def test_no_agreement_without_labels_or_with_another_net(run):
    found = run(fakes.changed())
    assert "agreement" not in tables.distances("classifier", found).head
    for net in ("inception", "pixels"):
        assert not tables._has_agreement(net, found)


def test_the_adaptive_solver_is_named_and_is_not_the_row_of_many_evaluations(run):
    found = run(fakes.several_nets())
    solvers = column(tables.distances("inception", found), "solver", 1)
    assert solvers == ["euler", "euler", "euler", "heun", "rk45 (adaptive)"]
    found.tables["flow1"][-1] |= {"nfe": "35", "fd_classifier": "7"}
    assert found.at("flow1", "classifier", 35) == fakes.distance(0, 35)


def test_standard_deviations_stand_beside_means_of_several_seeds(run):
    table = tables.distances("classifier", run(fakes.changed()))
    distance = [row[table.head.index("fd_classifier") - len(table.head)].spread
                for row in table.groups[2].rows]  # fmt: skip
    assert distance == ["± 0.010", "± 0.010", "± 0.010", ""]


def test_a_number_that_was_not_measured_is_no_number(run):
    found = run(fakes.changed())
    found.tables["flow2"][0] |= {"fd_classifier": "", "fd_classifier_std": ""}
    assert column(tables.distances("classifier", found), "fd_classifier", 2)[0] == numbers.MISSING


def test_data_in_words():
    pairs = {
        "drawn": {**fakes.PAIRS, "guidance": 1.5},
        "inverted": {"teacher": "flow1", "source": "images", "solver": "heun", "nfe": 8},
        "given": {"teacher": "flow1", "source": "import", "path": "x", "digest": "0" * 64},
    }
    recipes = {
        **fakes.TWO["recipes"],
        "mixed": {**fakes.REFLOW, "mix": 0.25},
        "none": {"steps": 0},
    }
    flows = {
        "flow1": fakes.FLOW1,
        **{name: {**fakes.FLOW2, "data": name} for name in ("inverted", "given")},
        "mixed": {**fakes.FLOW2, "recipe": "mixed", "data": "inverted", "mix": "drawn"},
        "same": {"recipe": "none", "data": "images", "mix": "images", "start": "flow1"},
    }
    pairs = {f"of_{name}": row for name, row in pairs.items()}
    for row in flows.values():
        for key in ("data", "mix"):
            row[key] = row[key] if row[key] == "images" else f"of_{row[key]}"
    flows["flow1"] = fakes.FLOW1
    network = {"unet": {**fakes.NET, "conditional": True}}
    recipes["pretrain"] = {**fakes.PRETRAIN, "label_dropout": 0.1}
    config = params.parse(
        fakes.changed(networks=network, recipes=recipes, pairs=pairs, flows=flows)
    )
    said = {name: tables.data_of(name, config) for name in flows}
    drawn = "of_drawn (2,000 pairs by flow1: midpoint, 18 evaluations, guidance 1.5)"
    inverted = "of_inverted (real images sent to noise by flow1: heun, 8 evaluations)"
    assert said == {
        "flow1": "Trained on the real images",
        "inverted": f"Trained on {inverted}",
        "given": "Trained on of_given (imported pairs)",
        "mixed": f"Trained on {inverted}, 25% of each batch from {drawn}",
        "same": "flow1 as it is",
    }


def test_budgets_in_words(run):
    found = run(fakes.changed())
    assert texts(tables.costs(found).groups[0].rows) == [
        ["flow1", "1,234", "1,000", "4,800", "4,800 for 100 updates of 16 images", "4,800"],
        ["flow2", "1,234", "1,001", "40,800",
         "4,800 for 200 updates of 8 images, 36,000 for pairs2", "41,800"],
    ]  # fmt: skip
    assert tables.spent_on("flow1", params.parse(fakes.imported()), 0) == "nothing here: an import"


def test_the_ideal_of_the_noise_is_that_of_a_gaussian(run):
    ideal = texts(tables.properties(run(fakes.changed())).groups[0].rows)[0]
    assert ideal == ["Gaussian noise (ideal)", *"0000", "1", f"{math.sqrt(2 / 64):.3f}", "0"]


def test_feature_nets_are_ranked_against_the_first(run):
    found = run(fakes.several_nets())
    for row in [row for rows in found.tables.values() for row in rows]:
        row["fd_pixels"] = str(-float(row["fd_classifier"]))
    [(first, same), (second, opposite)] = tables.rankings(found)
    assert (first, second) == ("fid", "fd_pixels")
    assert same == pytest.approx(1)
    assert opposite == pytest.approx(-1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.4776, "3.478"), (0.64, "0.6400"), (0, "0"), (1214.3, "1,214"), (-0.0055, "−0.005500"),
     (4e-7, "4e-07"), (193.55, "193.6"), (12345678, "12,345,678"), (math.nan, "–"), (None, "–")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert numbers.short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (100, "100 s"), (150, "2 min"), (7199, "2 h 00 min"),
     (86_400, "24 h 00 min")],
)  # fmt: skip
def test_durations_are_in_units_that_people_use(seconds, text):
    assert numbers.duration(seconds) == text


def test_the_floor_is_the_mean_of_its_bootstraps(run):
    found = run(fakes.changed())
    found.real["classifier/floor"] = np.array([[0.4] * 5, [0.8] * 5])
    assert found.floor("classifier") == pytest.approx(0.6)
    row = tables.distances("classifier", found).groups[0].rows[0]
    assert (row[3].text, row[3].spread) == ("0.6000", "± 0.28")


def test_the_row_of_an_own_grid_stands_beside_the_others_and_for_none_of_them(run):
    found = run(fakes.changed())
    for line in found.tables["flow2"]:
        line["endpoint_error"] = "0.25"
    found.tables["flow2"].append({**found.tables["flow2"][0], "solver": "euler-boss",
                                  "fd_classifier": "0.6", "endpoint_error": "0.125"})  # fmt: skip
    table = tables.distances("classifier", found)
    assert column(table, "solver", 2)[-1] == "euler, own grid"
    assert column(table, "to fine solution", 2) == ["0.2500"] * 4 + ["0.1250"]
    assert set(column(table, "to fine solution", 0)) == {""}
    first = int(found.tables["flow2"][0]["nfe"])
    assert found.at("flow2", "classifier", first) == fakes.distance(1, first)
    del found.tables["flow2"][:-1]
    assert math.isnan(found.at("flow2", "classifier", first))
