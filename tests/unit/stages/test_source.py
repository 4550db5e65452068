"""The fingerprint of the raw images: what DVC watches instead of their path."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import artifacts
from pipeline.stages import prepare, source
from rfpp_core.config.dataset import Dataset
from rfpp_core.errors import UserError
from tests.helpers import SMOKE, Project, new_project


@pytest.fixture
def here(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(project)
    return tmp_path


def pictures(folder, n=3):
    rng = np.random.default_rng(0)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def dataset(path, **changes):
    return Dataset(name="folder", path=str(path), **changes)


def of(path, **changes):
    return source.fingerprint(dataset(path, **changes))


def test_it_is_of_names_and_contents_not_of_place_or_time(here):
    one = pictures(here / "one")
    before = of(one)
    shutil.copytree(one, here / "elsewhere")
    (here / "elsewhere" / ".DS_Store").write_text("hidden")
    assert of(here / "elsewhere") == before
    os.utime(one / "a" / "0.png", (1, 1))
    assert of(one) == before
    (one / "a" / "0.png").rename(one / "b" / "9.png")
    assert of(one) != before


def test_an_edited_file_is_noticed_though_digests_are_cached(here):
    one = pictures(here / "one")
    before = of(one)
    assert (artifacts.work() / "source-digests.json").exists()
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(one / "a" / "0.png")
    assert of(one) != before
    (artifacts.work() / "source-digests.json").write_text("[1")  # corrupted: read again
    assert of(one) == of(one)


def test_the_labels_file_is_part_of_it(here):
    one, labels = pictures(here / "one"), here / "labels.csv"
    labels.write_text("a/0.png,x\n")
    before = of(one, labels=str(labels))
    labels.write_text("a/0.png,y\n")
    assert of(one, labels=str(labels)) != before
    assert of(one, labels="none") != of(one)


def test_sets_that_need_no_path_have_none(here):
    assert source.fingerprint(Dataset()) == {"name": "digits"}


def test_a_relative_path_of_an_experiment_in_a_copy_is_found_in_the_main_tree(here, monkeypatch):
    pictures(here / "project" / "raw")
    copy = here / "project" / ".dvc" / "tmp" / "exps" / "x"
    (copy / ".dvc").mkdir(parents=True)
    before = of("raw")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(here / "project"))
    assert of("raw") == before


def test_home_is_expanded(here, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures(here / "home" / "raw").parent))
    assert of("~/raw") == of(here / "home" / "raw")


def missing(here):
    return "nowhere"


def empty(here):
    (here / "empty").mkdir()
    return here / "empty"


def dangling(here):
    (here / "link").symlink_to(here / "gone")
    return here / "link"


@pytest.mark.parametrize("make", [missing, empty, dangling])
def test_images_that_are_not_there_are_one_line(here, make, monkeypatch):
    path = make(here)
    raw = yaml.safe_load(SMOKE)
    raw["dataset"] |= {"name": "folder", "path": str(path)}
    (here / "project" / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=f"dataset.path '{path}' is not there or empty"):
        source.run()


def test_the_project_itself_is_no_set_of_images(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    for path in (".", str(here), "~"):
        with pytest.raises(UserError, match="contains this project"):
            of(path)


def test_a_missing_labels_file_is_one_line(here):
    with pytest.raises(UserError, match=r"dataset.labels 'no.csv' does not exist"):
        of(pictures(here / "one"), labels="no.csv")


def test_a_file_that_cannot_be_read_is_named(here, monkeypatch):
    one = pictures(here / "one")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(source.files, "sha256", refuse)
    with pytest.raises(UserError, match=r"one/a/0.png cannot be read: Permission denied"):
        of(one)


def test_what_systems_leave_behind_changes_nothing(here):
    """Otherwise a look into the folder with a file manager reruns prepare and all that follows."""
    one = pictures(here / "one")
    before = of(one)
    for name in (
        "Thumbs.db",
        "a/desktop.ini",
        "b/ehthumbs.db",
        "a/.DS_Store",
        "a/._0.png",
        "@eaDir/0.png",
        "$RECYCLE.BIN/0.png",
        "__MACOSX/a/0.png",
        ".git/0.png",
    ):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_bytes(b"system")
    assert of(one) == before
    (one / "a" / "notes.txt").write_text("mine")
    assert of(one) != before


LONG = "x" * 300
ODD = ["~nosuch/x", LONG, f"{LONG}/x", "a\x1b[31mb", "no\nwhere", "\u202e", "\ud800", "a\0b",
       "/dev/null/x", "loop"]  # fmt: skip


@pytest.mark.parametrize("option", ["path", "labels"])
@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_paths_that_no_file_can_have_are_one_line(here, name, option):
    (here / "project" / "loop").symlink_to("loop")
    given = {"path": str(pictures(here / "one")), option: name}
    section = Dataset.model_construct(**{**Dataset(name="folder").model_dump(), **given})
    for stage in (lambda: source.fingerprint(section) or source.prepared(section),
                  lambda: prepare.source_of(section)):  # fmt: skip
        with pytest.raises(UserError) as error:
            stage()
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


def test_names_that_are_not_utf8_and_links_in_circles(here):
    one = pictures(here / "one")
    name = os.fsdecode(b"\xff.png")
    (one / "a" / name).write_bytes((one / "a" / "0.png").read_bytes())
    (one / "b" / "round").symlink_to(one)
    assert of(one) == of(one)
    json.dumps(of(one))


@pytest.mark.slow
@pytest.mark.long
def test_a_clone_without_the_raw_images_and_the_same_images_elsewhere(tmp_path):
    """git clone, dvc pull: an experiment that needs only the prepared images runs; a wrong path is
    refused; the same images at another path prepare nothing and retrain nothing."""
    project, raw = new_project(tmp_path / "project"), pictures(tmp_path / "raw", 30)
    config = yaml.safe_load((project.path / "params.yaml").read_text())
    config["dataset"] |= {"name": "folder", "path": str(raw)}
    config["recipes"]["pretrain"] |= {"steps": 20, "batch": 16, "log_every": 10}
    (project.path / "params.yaml").write_text(yaml.safe_dump(config))
    project.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    project.run("dvc", "repro", "train@flow1")
    project.run("git", "add", "-fA", "dvc.lock", ".dvc/config", "params.yaml")
    project.run("git", "commit", "-qm", "run")
    project.run("dvc", "push")

    project.run("git", "clone", "-q", str(project.path), str(tmp_path / "clone"))
    raw.rename(tmp_path / "moved")
    clone = Project(tmp_path / "clone")
    clone.run("dvc", "pull", "--with-deps", "train@flow1")
    done = clone.run("dvc", "exp", "run", "-S", "recipes.pretrain.steps=30", "train@flow1").stdout
    assert "the images prepared from it are used" in done
    assert "30 steps" in done
    wrong = clone.run("dvc", "exp", "run", "-S", "dataset.path=/typo", "source", ok=False)
    assert "rfpp: dataset.path '/typo' is not there or empty" in wrong.stderr
    config["dataset"]["path"] = str(tmp_path / "moved")
    config["recipes"]["pretrain"]["steps"] = 30
    (clone.path / "params.yaml").write_text(yaml.safe_dump(config))
    done = clone.run("dvc", "repro", "train@flow1").stdout
    for name in ("preflight", "prepare", "train@flow1"):
        assert f"Stage '{name}' didn't change, skipping" in done
