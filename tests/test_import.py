"""EDM checkpoints as teachers: inferred, refused with the differences, run through the stages."""

import contextlib
import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from rfpp_core import build, checkpoint, files, importing
from rfpp_core.errors import UserError
from rfpp_core.params import Network
from tests.conftest import SMOKE, new_project, randomised, save_tiny

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), precond="edm")


def edm(tmp_path, arch, classes=0, shape=(1, 8, 8), **changes):
    """A state dict file of an untrained network, and its architecture."""
    network = Network(arch=arch, conditional=classes > 0, **{**SMALL, **changes})
    document = build.architecture(network, shape, classes)
    path = tmp_path / f"{arch}{classes}.pth"
    torch.save(randomised(build.field(document)).state_dict(), path)
    return path, document


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("ncsnpp", {"attention_resolutions": (16, 8)}),
        ("ncsnpp", {"channels": 16, "multipliers": (2, 2, 2), "blocks": 2, "augment": 0}),
        ("ddpmpp", {"attention_resolutions": (8,)}),
        ("adm", {"channels": 64, "augment": 0, "attention_resolutions": (8,)}),
    ],
)
def test_the_architecture_is_inferred(tmp_path, arch, classes, changes):
    path, document = edm(tmp_path, arch, classes, (3, 16, 16), **changes)
    about = importing.convert(path, tmp_path / "flow.safetensors")
    want = {k: v for k, v in document.items() if k != "attention"}
    assert {k: v for k, v in about["architecture"].items() if k != "attention"} == want
    flow = build.load_flow(tmp_path / "flow.safetensors")
    assert flow.start == 80 / 81
    ours, theirs = flow.field.state_dict(), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert flow.sample(2, nfe=3).shape == (2, 3, 16, 16)
    again = importing.convert(tmp_path / "flow.safetensors", tmp_path / "again.safetensors")
    assert again["architecture"] == about["architecture"]
    assert again["start"] == 80 / 81


def test_equal_checkpoints_give_equal_bytes(tmp_path):
    path, _ = edm(tmp_path, "ncsnpp")
    for name in ("a", "b"):
        importing.convert(path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_does_not_fit_is_refused_with_the_differences(tmp_path):
    path, document = edm(tmp_path, "ncsnpp")
    target = tmp_path / "flow.safetensors"
    other = build.architecture(Network(arch="adm", **{**SMALL, "channels": 32}), (1, 8, 8), 0)
    with pytest.raises(
        UserError, match=r"does not fit the network: .* is .*, not .*; .*and \d+ more"
    ):
        importing.convert(path, target, other)
    wide = build.architecture(Network(arch="ncsnpp", **{**SMALL, "channels": 16}), (1, 8, 8), 0)
    with pytest.raises(UserError, match=r"is \(\d+.*\), not \(\d+"):
        importing.convert(path, target, wide)
    with pytest.raises(UserError, match=r"has sha256 .*, not 000"):
        importing.convert(path, target, document, "0" * 64)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds none of EDM's networks"):
        importing.convert(tmp_path / "x.pth", target)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        importing.convert(path, target, document)
    assert not target.exists()


def with_teacher(path, checkpoint_path, document, **changes):
    """The smoke preset with an imported teacher and pairs by EDM's sampler."""
    raw = yaml.safe_load(SMOKE.read_text())
    raw["network"] |= {k: document[k] for k in raw["network"] if k in document}
    raw["network"]["conditional"] = document["classes"] > 0
    raw["pretrain"] |= {"source": "import", "checkpoint": str(checkpoint_path),
                        "checkpoint_sha256": files.sha256(checkpoint_path)}  # fmt: skip
    raw["generate"] |= {"solver": "edm-heun", "nfe": 5, "grid": "karras", "n": 200}
    raw["reflow"] |= {"steps": 20}
    (path / "params.yaml").write_text(yaml.safe_dump(raw))


def test_a_damaged_model_of_ours_is_not_made_whole(tmp_path):
    path = save_tiny(tmp_path / "flow.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError, match="is damaged"):
        importing.convert(path, tmp_path / "out.safetensors")
    path.write_bytes(content)
    importing.convert(path, tmp_path / "out.safetensors")
    build.load_flow(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "text", ["{", '{"provenance": [1]}', '{"start": "x"}', '{"start": 0}', '{"start": NaN}',
             '{"provenance": {"budget_with_ancestors": "many"}}', "[" * 100_000],
)  # fmt: skip
def test_metadata_of_strangers_is_checked(tmp_path, text):
    tensors, about, _ = checkpoint.load(save_tiny(tmp_path / "flow.safetensors"))
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(about | json.loads(text))
    save_file(tensors, tmp_path / "in.safetensors", metadata={"rfpp": text})
    with pytest.raises(UserError):
        importing.convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UserError):
        checkpoint.load(tmp_path / "in.safetensors")


def test_the_pipeline_from_an_imported_teacher(tmp_path):
    """Also class-conditional: labels through pairs, reflow, evaluation."""
    project = new_project(tmp_path / "project")
    path, document = edm(tmp_path, "ncsnpp", classes=10)
    with_teacher(project.path, path, document)
    assert "is flow1 (sha256 " in project.run("dvc", "repro").stdout
    about = checkpoint.load(project.path / "models/flow2.safetensors").about
    assert about["architecture"]["arch"] == "ncsnpp"
    assert about.get("start", 1.0) == 1.0
    metrics = json.loads((project.path / "metrics/flow1.json").read_text())
    assert "agreement" in metrics
    assert (project.path / "curves/flow1.csv").read_text().count("edm-heun") == 1
    assert "edm-heun" not in (project.path / "curves/flow2.csv").read_text()
    assert "up to date" in project.run("dvc", "repro").stdout
    path, document = edm(tmp_path, "adm", channels=64)
    with_teacher(project.path, path, document)
    project.run("dvc", "repro", "reflow@2")
    about = checkpoint.load(project.path / "models/flow2.safetensors").about
    assert about["architecture"]["arch"] == "adm"
    path.write_bytes(b"other")
    done = project.run("dvc", "repro", "--force", "preflight", ok=False)
    assert "has sha256" in done.stderr
