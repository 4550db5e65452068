"""``rfpp preset``: a params file in place, with values set by hand; nothing edited is lost."""

import pytest

from pipeline.cli import presets
from rfpp_core.config import params, yaml_file

PRESETS = presets.names()


def test_presets_keep_what_was_edited(here, rfpp):
    assert rfpp("preset", "smoke", cwd=here).returncode == 0
    params = here / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    done = rfpp("preset", "digits", cwd=here)
    assert "kept as params.yaml.bak1" in done.stdout
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
    [network] = want["networks"]
    values = ["recipes.reflow.times.distribution=uniform", "seed=7", "evaluate.nfe=[1, 2]",
              f"networks.{network}.channels=12", "dataset.limit=null",
              "evaluate.grids.2=[1.0, 0.8]", "recipes.reflow.loss={name: l2}"]  # fmt: skip
    sets = [part for value in values for part in ("--set", value)]
    done = rfpp("preset", name, *sets, "--out", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "p.yaml").read_text()
    want["recipes"]["reflow"] |= {"loss": {"name": "l2"}}
    want["recipes"]["reflow"].setdefault("times", {})["distribution"] = "uniform"
    want["networks"][network]["channels"], want["dataset"]["limit"] = 12, None
    grids = {**want["evaluate"].get("grids", {}), "2": [1.0, 0.8]}
    want["evaluate"] |= {"nfe": [1, 2], "grids": grids}
    assert yaml_file.parse(text, "p.yaml") == {**want, "seed": 7}
    assert params.load(tmp_path / "p.yaml").seed == 7
    comments = [line for line in before.splitlines() if line.strip().startswith("#")]
    assert comments == [line for line in text.splitlines() if line.strip().startswith("#")]
