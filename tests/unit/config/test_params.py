import pytest
import torch
import yaml

from rfpp_core.config import build, params
from rfpp_core.errors import UserError
from tests.helpers import ROOT, SMOKE

LATER = {"warmup_from_zero": False, "nonfinite": "stop", "antithetic": False, "chunk": 0}
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_complete_and_valid(path):
    """Nothing is left to a default, but options that came later and do nothing unless set."""
    loaded, given = params.load(path).model_dump(mode="json"), yaml.safe_load(path.read_text())
    for name in ("pretrain", "reflow", "finetune"):
        sections = (loaded[name], given[name]), (loaded[name]["times"], given[name]["times"]), (
            loaded[name]["loss"], given[name]["loss"])  # fmt: skip
        for found, said in sections:
            for option in LATER.keys() & found.keys() - said.keys():
                assert found.pop(option) == LATER[option]
    assert loaded == given


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
        (
            "pretrain.source",
            "import",
            ["source: import needs checkpoint (a path) and checkpoint_s"],
        ),
        ("generate.source", "import", ["source: import needs path, a store made by `rfpp pairs"]),
        (
            "generate.solver",
            "edm-heun",
            ["has no end at t = 1: it is for an imported flow1, not for flow1"],
        ),
        ("invert.solver", "anchored", ["anchored update has no inverse"]),
        ("features.nets", ["pixels", "pixels"], ["nets names one twice"]),
        ("features.nets", ["clip"], ["features.nets.0 is 'clip'", "'classifier', 'inception'"]),
        ("reflow.accumulate", 3, ["batch (64) must be a multiple of accumulate (3)"]),
        (
            "finetunes",
            {"3": {"teacher": "flow1", "flow": "flow9", "pairs": "2"}},
            ["finetunes.3 names flow1, flow9"],
        ),
        (
            "finetunes",
            {"2": {"teacher": "flow1", "flow": "flow1", "pairs": "2"}},
            ["flow2 is both in rounds and in finetunes"],
        ),
        ("reflow.times.a", 3000.0, ["less than or equal to 100"]),
        ("evaluate.n", 3, ["n (3) must exceed neighbours + 1 (4)"]),
        ("network.channels", 30, ["network.channels is 30", "multiple of 4"]),
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


# name: parameters, steps, batch, lr, warmup, dropout, pairs, NFE, loss, precision, side, classes
PUBLISHED = {
    "cifar10": (56_397_827, 800_000, 512, 2e-4, 5000, 0.13, 10**6, 35, "lpips_huber_over_t",
                "fp32", 32, 0),
    "afhq64": (62_761_091, 1_000_000, 256, 2e-4, 5000, 0.25, 5 * 10**6, 79, "lpips_huber_over_t",
               "fp32", 64, 0),
    "ffhq64": (62_761_091, 1_000_000, 256, 2e-4, 5000, 0.25, 5 * 10**6, 79, "lpips_huber",
               "fp32", 64, 0),
    "imagenet64": (295_899_267, 700_000, 2048, 1e-4, 2500, 0.1, 5 * 10**6, 79, "lpips_huber",
                   "fp16", 64, 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_runs(name):
    """The table of RF++ (arXiv 2405.20320, sec. 5.2 and app. E; official README)."""
    config = params.load(ROOT / f"presets/{name}.yaml")
    row = PUBLISHED[name]
    size, steps, batch, lr, warmup, dropout, n, nfe, loss, precision, side, classes = row
    with torch.device("meta"):
        net = build.field(build.architecture(config.network, (3, side, side), classes))
    assert sum(p.numel() for p in net.parameters()) == size
    reflow, generate = config.reflow, config.generate
    assert (reflow.steps, reflow.batch, reflow.lr, reflow.warmup) == (steps, batch, lr, warmup)
    assert (reflow.dropout, reflow.loss.name, reflow.precision) == (dropout, loss, precision)
    assert (reflow.decay, reflow.ema, reflow.ema_ramp, reflow.clip) == (
        "constant",
        0.9999,
        False,
        0,
    )
    assert (reflow.times.law, reflow.times.a, reflow.loss.c) == ("u_shape", 4.0, 0.00054)
    assert (reflow.warmup_from_zero, reflow.nonfinite, reflow.times.antithetic) == (
        True,
        "skip",
        True,
    )
    assert (reflow.loss.pooling, reflow.loss.resize) == ("average", 224)
    assert (generate.n, generate.nfe, generate.solver, generate.grid) == (
        n,
        nfe,
        "edm-heun",
        "karras",
    )
    assert config.pretrain.source == "import"
    assert config.evaluate.n == 50_000
    assert config.evaluate.grids == {"2": (1.0, 0.8)}
    assert config.features.nets == ("inception",)


def test_config_g_is_f_and_then_real_images():
    f, g = (params.load(ROOT / f"presets/{name}.yaml") for name in ("cifar10", "cifar10-real"))
    assert g.model_copy(update={"finetunes": {}}) == f
    assert (g.invert.nfe, g.finetune.steps, g.finetune.lr, g.finetune.mix) == (128, 5000, 1e-5, 0)
    assert g.flows == ["flow1", "flow2", "flow3"]


def test_edm_heun_drops_its_last_correction():
    raw = yaml.safe_load((ROOT / "presets/cifar10.yaml").read_text())
    raw["generate"]["nfe"] = 36
    with pytest.raises(UserError, match=r"generate\.nfe is 36; edm-heun .* an odd number"):
        params.parse(raw)
    raw["generate"] |= {"nfe": 199, "solver": "heun", "grid": "uniform"}
    with pytest.raises(UserError, match="begins before an imported EDM's first time"):
        params.parse(raw)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("rounds", {"3": {"teacher": "flow2"}}, "an imported flow1, not for flow2"),
        ("finetunes", {"3": {"teacher": "flow2", "flow": "flow2", "pairs": "2"}}, "not for flow2"),
        ("evaluate", {"solver": "edm-heun", "grids": {}}, "evaluate.solver edm-heun cannot start"),
        (
            "network",
            {"sigma_data": 0.75},
            "needs network.precond: edm and network.sigma_data: 0.5",
        ),
        ("network", {"precond": "velocity"}, "needs network.precond: edm"),
    ],
)
def test_what_an_imported_teacher_cannot_do(section, change, said):
    raw = yaml.safe_load((ROOT / "presets/cifar10.yaml").read_text())
    raw[section] |= change
    with pytest.raises(UserError) as error:
        params.parse(raw)
    assert said in str(error.value)


def test_a_perceptual_term_over_t_needs_a_time_above_0():
    raw = change("reflow.loss.name", "lpips_huber_over_t")
    raw["reflow"]["times"] |= {"law": "fixed", "t": 0.0}
    with pytest.raises(UserError, match=r"times\.t must be above 0"):
        params.parse(raw)
