"""What a run lacks is said before any compute, all at once."""

import sys

import pytest
import torch
import yaml

from pipeline import artifacts, console
from pipeline.stages import preflight
from pipeline.work import feature_nets
from rfpp_core.config import params, yaml_file
from rfpp_core.storage import checkpoint
from tests.helpers import SMOKE
from tests.unit.images.test_sources import CLASSES, tree, zipped


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the stage on the smoke preset with changes; returns what it says if all is not well."""

    def offline(url, path, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["preflight"])
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "data").mkdir()

    def run(**changes):
        raw = yaml.safe_load(SMOKE)
        for name, value in changes.items():
            *sections, last = name.split("__")
            at = raw
            for section in sections:
                at = at[section]
            at[last] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        code = 0
        try:
            console.main(preflight.run)
        except SystemExit as end:
            code = end.code
        assert (code, artifacts.PREFLIGHT.exists()) in ((0, True), (2, False))
        artifacts.PREFLIGHT.unlink(missing_ok=True)
        return capsys.readouterr().err.removeprefix("rfpp: ")

    return run


FOLDER = {"dataset__name": "folder", "dataset__resolution": 8, "dataset__held_out": 0.5,
          "recipes__pretrain__batch": 2, "evaluate__neighbours": 1}  # fmt: skip
VGG = ("vgg16-397923af.pth", "download.pytorch.org", "loss.vgg_path", "no network")
INCEPTION = ("inception-2015-12-05.pt", "nvlabs", "features.inception_path", "no network")


def test_all_is_there(check, tmp_path):
    assert check() == ""
    assert check(**FOLDER, dataset__path=str(tree(tmp_path / "set", CLASSES))) == ""
    assert check(recipes__reflow__loss__perceptual="classifier") == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**FOLDER, "dataset__path": "gone"}, ["gone does not exist", "dataset.path"]),
        ({**FOLDER, "dataset__path": "empty"}, ["empty holds no images", ".png"]),
        ({**FOLDER, "dataset__path": "bad"}, ["a/0.png is not a readable image", "skip_corrupt"]),
        ({**FOLDER, "dataset__path": "evil.zip"}, ["../x.png"]),
        ({**FOLDER, "dataset__path": "flat"}, ["no labels, needed by features.nets with clas"]),
        (
            {**FOLDER, "dataset__path": "flat", "features__nets": ["pixels"],
             "networks__unet__conditional": True},
            ["no labels, needed by networks.unet with conditional: true;"],
        ),
        (
            {**FOLDER, "dataset__path": "flat", "dataset__labels": "labels.csv"},
            ["labels.csv has no label for 3 of 4 images", "b.png"],
        ),
        ({**FOLDER, "dataset__path": "wide", "dataset__resolution": None}, ["14x12 pixels"]),
        ({**FOLDER, "dataset__path": "set", "dataset__resolution": 9}, ["a multiple of 2", "9x9"]),
        ({"recipes__reflow__loss__perceptual": "lpips"}, VGG),
        ({"recipes__pretrain__loss": {"perceptual": "lpips", "vgg_path": "vgg.pth"}},
         ["vgg.pth is missing", "vgg16-397923af.pth comes from"]),
        ({"features__nets": ["inception", "inception_clean"]}, INCEPTION),
        ({"pairs__pairs2__n": 10**14}, ["the pairs take up to 6400000.0 GB"]),
    ],
)  # fmt: skip
def test_one_thing_is_one_line(check, tmp_path, changes, said):
    tree(tmp_path / "set", CLASSES)
    tree(tmp_path / "flat", ["a.png", "b.png", "c.png", "d.png"])
    tree(tmp_path / "wide", ["a/0.png", "b/0.png", "a/1.png", "b/1.png"], side=(14, 12))
    tree(tmp_path / "bad", ["a/0.png", "b/0.png", "a/1.png", "b/1.png"])
    (tmp_path / "bad/a/0.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    zipped(tmp_path / "evil.zip", ["../x.png"])
    line = check(**changes)
    assert line.count("\n") == 1
    for part in said:
        assert part in line


def test_everything_at_once(check):
    lines = check(
        **FOLDER, dataset__path="gone", features__nets=["inception"],
        recipes__reflow__loss__perceptual="lpips",
    ).splitlines()  # fmt: skip
    assert lines[0] == "3 things are missing for this run:"
    for line, part in zip(
        lines[1:], ("gone does not exist", *INCEPTION[:1], *VGG[:1]), strict=True
    ):
        assert part in line


def test_features_of_another_extractor_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    config = params.parse(yaml_file.parse(SMOKE, "smoke"))
    other = config.features.model_copy(update={"nets": ("pixels",)})
    checkpoint.save(artifacts.FEATURES, {}, {"features": feature_nets.described(other)})
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    with pytest.raises(SystemExit) as end:
        console.main(lambda: feature_nets.Reference(config.features))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "rfpp: models/features.safetensors is of pixels, made with other features params than now "
        "(classifier); run `dvc repro reference`\n"
    )
