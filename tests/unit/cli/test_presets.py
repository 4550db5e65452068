"""``rfpp preset``: a params file in place, with values set by hand; nothing edited is lost."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.cli import presets
from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from tests.helpers import ROOT

PRESETS = presets.names()
OVERLAYS = [name for name in PRESETS if "extends:" in (ROOT / f"presets/{name}.yaml").read_text()]

EARLIER = """seed: 3  # mine
network: {arch: small_unet, channels: 16}
pretrain: {steps: 100, times: {law: uniform}}
generate: {n: 2000}
reflow: {steps: 100, loss: {name: lpips_huber}}
"""


def said(name: str) -> dict[str, Any]:
    """What the file of a preset says."""
    return yaml_file.read(ROOT / f"presets/{name}.yaml")


def merged(base: Any, over: Any) -> Any:
    """Mappings are merged key by key, all else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_params_file(tmp_path, rfpp, name):
    done = rfpp("preset", name, "--out", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.yaml").read_text() == presets.composed(name)
    assert params.load(tmp_path / "p.yaml").flows


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_its_base_with_what_differs(name):
    """Under its own header; all other comments are the base's."""
    over = said(name)
    base = presets.composed(over.pop("extends"))
    text = presets.composed(name)
    assert "extends" not in text
    assert yaml_file.parse(text, name) == merged(yaml_file.parse(base, name), over)
    own = (ROOT / f"presets/{name}.yaml").read_text()
    assert text.startswith(own[: own.index("extends:")].rstrip())
    body = base[base.index("\nseed:") :]
    comments = [line for line in body.splitlines() if line.strip().startswith("#")]
    assert [line for line in comments if line not in text.splitlines()] == []
    assert base.splitlines()[0] not in text


def test_there_are_overlays_and_whole_files():
    assert {"ablation", "smoke", "cifar10-real"} <= set(OVERLAYS)
    assert set(OVERLAYS) < set(PRESETS)


def test_the_params_file_of_the_project_is_a_preset():
    assert (ROOT / "params.yaml").read_text() == presets.composed("digits")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


def test_a_params_file_of_an_earlier_version_is_saved_and_explained(place, rfpp):
    (place / "params.yaml").write_text(EARLIER)
    done = rfpp("preset", "digits", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "params.yaml.bak1" in done.stdout
    assert (place / "params.yaml.bak1").read_text() == EARLIER
    assert params.load(place / "params.yaml") == params.load(ROOT / "params.yaml")
    for old in ("network", "pretrain, reflow", "times.law", "lpips_huber", "generate, rounds",
                "invert", "finetune, finetunes", "evaluate.teacher_nfe"):  # fmt: skip
        assert old in done.stdout
    assert "pairs2: {teacher: flow1, n: ...}" in done.stdout


@pytest.mark.long
def test_an_untouched_params_file_is_replaced_without_a_word(place, rfpp):
    for name in PRESETS:
        done = rfpp("preset", name, cwd=place)
        assert done.stdout == f"params.yaml is now preset {name}; `dvc repro` runs it\n"
    assert sorted(path.name for path in place.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_no_saved_file_is_overwritten(place, rfpp):
    for i in range(3):
        (place / "params.yaml").write_text(f"seed: {i}\n")
        rfpp("preset", "digits", cwd=place)
    assert [(place / f"params.yaml.bak{i + 1}").read_text() for i in range(3)] == [
        f"seed: {i}\n" for i in range(3)
    ]


@pytest.mark.parametrize(("assignment", "at", "value"), [
    ("recipes.pretrain.steps=0100", ("recipes", "pretrain", "steps"), 100),  # not octal
    ("recipes.pretrain.lr=1e-3", ("recipes", "pretrain", "lr"), 0.001),  # a number
    ("dataset.path=1:30", ("dataset", "path"), "1:30"),  # no base 60
    ("dataset.path=yes", ("dataset", "path"), "yes"),  # no truth value
    ("dataset.path=2024-01-01x", ("dataset", "path"), "2024-01-01x"),
    ("dataset.skip_corrupt=true", ("dataset", "skip_corrupt"), True),
    ("dataset.path='a # b'", ("dataset", "path"), "a # b"),
    ("dataset.path=Ünï/ço", ("dataset", "path"), "Ünï/ço"),
])  # fmt: skip
def test_values_are_yaml_1_2_as_for_the_pipeline(place, rfpp, assignment, at, value):
    done = rfpp("preset", "digits", "--set", assignment, cwd=place)
    assert done.returncode == 0, done.stderr
    found = params.load(place / "params.yaml").model_dump()
    for key in at:
        found = found[key]
    assert found == value


@pytest.mark.parametrize("assignment", [
    "seed=1:30", "seed=yes", "seed=0x", "dataset.skip_corrupt=yes", "recipes.pretrain.lr=1:30",
    "seed=&a 1", "seed=!!python/object:os.system 1", "seed=1 # x\n", "dataset.path=a\udcffb",
])  # fmt: skip
def test_values_that_are_none(place, rfpp, assignment):
    done = rfpp("preset", "digits", "--set", assignment, cwd=place)
    if done.returncode == 0:  # such as an anchor, which changes nothing
        assert params.load(place / "params.yaml")
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert not (place / "params.yaml").exists()


KEYS = ["seed", "dataset.path", "dataset.limit", "dataset", "recipes.reflow.lr", "recipes.new",
        "recipes.reflow.loss", "flows.flow1", "evaluate.grids", "evaluate.grids.2", "evaluate.nfe",
        "pairs.pairs2.path", "x"]  # fmt: skip
VALUES = ["{}", "[]", "{lr: 0.1}", "null", "[1.0, 0.8]", "~", "0o17", "1_000", ".5", "+1", "'",
          "a: b"]  # fmt: skip


@pytest.mark.long
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(key=st.sampled_from(KEYS), value=st.text(max_size=12) | st.sampled_from(VALUES))
@example(key="dataset.path", value="a\x85b")
@example(key="dataset.path", value="\ufeff")
@example(key="dataset.path", value="|\n a")
@example(key="seed", value="1\r")
def test_what_is_accepted_can_be_loaded(tmp_path, key, value):
    """And says what was set."""
    out = tmp_path / "p.yaml"
    try:
        presets.preset("digits", out, [f"{key}={value}"])
    except UserError:
        return
    params.load(out)
    found = yaml_file.read(out)
    for part in key.split("."):
        found = found[part]
    assert found == yaml_file.parse(value.strip(), "value")


def test_an_edited_params_file_is_saved(here, rfpp):
    assert rfpp("preset", "smoke", cwd=here).returncode == 0
    params = here / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    done = rfpp("preset", "digits", cwd=here)
    assert "saved as params.yaml.bak1" in done.stdout
    assert (here / "params.yaml.bak1").read_text().endswith("# mine\n")


def test_a_preset_outside_a_project(tmp_path, rfpp):
    done = rfpp("preset", "smoke", cwd=tmp_path)
    assert done.returncode == 2
    assert "no dvc.yaml" in done.stderr
    assert not list(tmp_path.iterdir())
    assert rfpp("preset", "smoke", "--out", "x.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", PRESETS)
def test_values_set_beside_a_preset(tmp_path, rfpp, name):
    """They are there, all else is the preset's, and so are its comments."""
    before = presets.composed(name)
    want = yaml_file.parse(before, name)
    network, recipes = next(iter(want["networks"])), want["recipes"]
    recipe = "reflow" if "reflow" in recipes else next(iter(recipes))
    values = [f"recipes.{recipe}.times.distribution=uniform", "seed=7", "evaluate.nfe=[1, 2]",
              f"networks.{network}.channels=12", "dataset.limit=null",
              "evaluate.grids.2=[1.0, 0.8]", f"recipes.{recipe}.loss={{name: l2}}"]  # fmt: skip
    sets = [part for value in values for part in ("--set", value)]
    done = rfpp("preset", name, *sets, "--out", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "p.yaml").read_text()
    want["recipes"][recipe] |= {"loss": {"name": "l2"}}
    want["recipes"][recipe].setdefault("times", {})["distribution"] = "uniform"
    want["networks"][network]["channels"], want["dataset"]["limit"] = 12, None
    grids = {**want["evaluate"].get("grids", {}), "2": [1.0, 0.8]}
    want["evaluate"] |= {"nfe": [1, 2], "grids": grids}
    assert yaml_file.parse(text, "p.yaml") == {**want, "seed": 7}
    assert params.load(tmp_path / "p.yaml").seed == 7
    comments = [line for line in before.splitlines() if line.strip().startswith("#")]
    assert comments == [line for line in text.splitlines() if line.strip().startswith("#")]
