import pytest
import yaml

from rfpp_core import params
from rfpp_core.errors import UserError
from tests.conftest import ROOT, SMOKE

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_complete_and_valid(path):
    loaded = params.load(path).model_dump(mode="json")
    assert loaded == yaml.safe_load(path.read_text())  # nothing is left to a default


def change(name, value):
    raw = yaml.safe_load(SMOKE.read_text())
    *sections, last = name.split(".")
    at = raw
    for section in sections:
        at = at[section]
    at[last] = value
    return raw


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("reflow.lrr", 1, ["unknown param 'reflow.lrr'", "lr,", "allowed:"]),
        ("extra", 1, ["unknown param 'extra'", "reflow"]),
        ("rounds.2.student", "x", ["unknown param 'rounds.2.student'", "teacher"]),
        ("reflow.times.law", "u", ["reflow.times.law is 'u'", "'u_shape', 'uniform'"]),
        ("reflow.lr", -1, ["reflow.lr is -1", "greater than 0"]),
        ("reflow.ema", 1.0, ["reflow.ema", "less than 1"]),
        ("pretrain.steps", 0, ["pretrain.steps is 0", "greater than 0"]),
        ("pretrain.steps", 35, ["steps (35) must be a multiple of log_every (10)"]),
        ("generate.n", 650, ["n (650) must be a multiple of shard (100)"]),
        ("generate.micro_batch", 30, ["shard (100) must be a multiple of micro_batch (30)"]),
        ("generate.solver", "rk45x", ["generate.solver is 'rk45x'", "euler|heun"]),
        ("evaluate.nfe", [0, 1], ["evaluate.nfe.0 is 0", "greater than 0"]),
        ("seed", "abc", ["seed is 'abc'", "integer"]),
        ("rounds", {"3": {"teacher": "flow2"}}, ["rounds.3.teacher is flow2", "flow1, flow3"]),
        ("rounds", {"2": {"teacher": "flow2"}}, ["earlier flow"]),
        ("evaluate.grids", {"2": [0.8, 1.0]}, ["grids.2 must be 2 times falling"]),
        ("evaluate.grids", {"7": [1.0]}, ["grids.7 must be 7 times", "[1, 2]"]),
        ("reflow.batch", 4000, ["reflow.batch (4000) is larger than the set of pairs"]),
        ("generate.guidance", 2.0, ["needs network.conditional: true"]),
        ("evaluate.grids", {"2": [0.8, 0.4]}, ["grids.2 must be 2 times falling from 1"]),
        ("reflow.lr", float("inf"), ["reflow.lr", "finite"]),
        ("reflow.times.a", 3000.0, ["less than or equal to 100"]),
        ("evaluate.n", 3, ["n (3) must exceed neighbours + 1 (4)"]),
        ("network.channels", 30, ["network.channels is 30", "multiple of 8"]),
    ],
)
def test_a_wrong_param_is_named_with_what_is_allowed(name, value, parts):
    with pytest.raises(UserError) as error:
        params.parse(change(name, value), "params.yaml")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_the_two_step_grid_of_the_paper_is_legal():
    parsed = params.parse(change("evaluate.grids", {"2": [1.0, 0.8]}))
    assert parsed.evaluate.grids["2"] == (1, 0.8)


def test_a_third_round_is_legal():
    raw = change("rounds", {"2": {"teacher": "flow1"}, "3": {"teacher": "flow2"}})
    assert params.parse(raw).rounds["3"].teacher == "flow2"


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: [", "!!python/object/apply:os.system [ls]", "\0"]
)
def test_what_is_not_params_is_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        params.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(UserError, match="rfpp preset digits"):
        params.load(tmp_path / "params.yaml")
