"""EDM checkpoints as teachers: inferred, refused with the differences, run through the stages."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import save_file

from rfpp_core.config import build
from rfpp_core.config.network import Network, NetworkRow
from rfpp_core.errors import UserError, quoted
from rfpp_core.interop import importing
from rfpp_core.storage import checkpoint, files
from tests.helpers import SMOKE, new_project, ran, randomised, save_tiny

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
    metadata = importing.convert(path, tmp_path / "flow.safetensors")
    want = {k: v for k, v in document.items() if k != "attention"}
    assert {k: v for k, v in metadata["architecture"].items() if k != "attention"} == want
    flow = build.load_flow(tmp_path / "flow.safetensors")
    assert flow.start == 80 / 81
    ours, theirs = flow.field.state_dict(), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert flow.sample(2, nfe=3).shape == (2, 3, 16, 16)
    again = importing.convert(tmp_path / "flow.safetensors", tmp_path / "again.safetensors")
    assert again["architecture"] == metadata["architecture"]
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


def with_teacher(project, checkpoint_path, document):
    """The smoke preset with an imported teacher and pairs by EDM's sampler."""
    row = {name: document[name] for name in NetworkRow.model_fields if name in document}
    row |= {"conditional": document["classes"] > 0, "checkpoint": str(checkpoint_path),
            "sha256": files.sha256(checkpoint_path)}  # fmt: skip
    (project.path / "params.yaml").write_text(SMOKE)
    project.set(
        f"networks.edm={json.dumps(row)}",
        "recipes.keep={steps: 0}",
        "pairs.pairs2={teacher: flow1, n: 200, shard: 100, micro_batch: 50, solver: edm-heun,"
        " nfe: 5, grid: karras}",
        "flows.flow1.recipe=keep",
        "flows.flow1.start=edm",
        "recipes.reflow.steps=20",
        "evaluate.n=60",
        "evaluate.straightness_n=5",
    )


def test_a_damaged_model_of_ours_is_not_made_whole(tmp_path):
    path = save_tiny(tmp_path / "flow.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError, match="is corrupted"):
        importing.convert(path, tmp_path / "out.safetensors")
    path.write_bytes(content)
    importing.convert(path, tmp_path / "out.safetensors")
    build.load_flow(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "text", ["{", '{"provenance": [1]}', '{"start": "x"}', '{"start": 0}', '{"start": NaN}',
             '{"provenance": {"budget_with_ancestors": "many"}}', "[" * 100_000],
)  # fmt: skip
def test_metadata_of_strangers_is_checked(tmp_path, text):
    tensors, metadata, _ = checkpoint.load(save_tiny(tmp_path / "flow.safetensors"))
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(metadata | json.loads(text))
    save_file(tensors, tmp_path / "in.safetensors", metadata={"rfpp": text})
    with pytest.raises(UserError):
        importing.convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UserError):
        checkpoint.load(tmp_path / "in.safetensors")


@pytest.mark.slow
@pytest.mark.long
def test_the_pipeline_from_an_imported_teacher(tmp_path):
    """Also class-conditional: labels through pairs, reflow, evaluation."""
    project = new_project(tmp_path / "project")
    path, document = edm(tmp_path, "ncsnpp", classes=10)
    with_teacher(project, path, document)
    assert f"edm: {path} (sha256 " in project.run("dvc", "repro").stdout
    metadata = checkpoint.load(project.path / "models/flow2.safetensors").metadata
    assert metadata["architecture"]["arch"] == "ncsnpp"
    assert metadata.get("start", 1.0) == 1.0
    metrics = json.loads((project.path / "metrics/flow1.json").read_text())
    assert "agreement" in metrics
    assert (project.path / "curves/distance/flow1.csv").read_text().count("edm-heun") == 1
    assert "edm-heun" not in (project.path / "curves/distance/flow2.csv").read_text()
    assert ran(project.run("dvc", "repro").stdout) == ["source"]
    path, document = edm(tmp_path, "adm", channels=64)
    with_teacher(project, path, document)
    project.run("dvc", "repro", "train@flow2")
    metadata = checkpoint.load(project.path / "models/flow2.safetensors").metadata
    assert metadata["architecture"]["arch"] == "adm"
    path.write_bytes(b"other")
    done = project.run("dvc", "repro", "--force", "preflight", ok=False)
    assert "has sha256" in done.stderr


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("ncsnpp", {"channels": 12}),
        ("ddpmpp", {"channels": 12, "multipliers": (1, 2, 3)}),
        ("adm", {"channels": 64, "multipliers": (2, 3), "augment": 0}),
    ],
)
def test_small_and_wide_stemmed_networks_are_imported(tmp_path, arch, changes):
    path, document = edm(tmp_path, arch, shape=(3, 16, 16), **changes)
    state = torch.load(path, weights_only=True)
    if arch == "adm":  # its first state is as wide as its first level
        assert state["model.enc.16x16_conv.weight"].shape[0] == 128
    said = []
    metadata = importing.convert(path, tmp_path / "flow.safetensors", say=said.append)
    assert metadata["architecture"]["channels"] == document["channels"]
    assert metadata["architecture"]["multipliers"] == document["multipliers"]
    assert "does not state its preconditioning" in said[0]
    assert build.load_flow(tmp_path / "flow.safetensors").sample(1).shape == (1, 3, 16, 16)
    importing.convert(tmp_path / "flow.safetensors", tmp_path / "b.safetensors", say=said.append)
    assert len(said) == 1  # a file of ours tells


@pytest.mark.parametrize("arch", ["small_unet", "ncsnpp", "ddpmpp", "adm"])
def test_a_width_works_or_is_refused_in_one_line(arch):
    """What works is what torch's GroupNorm takes: groups that divide every width."""
    made, said = {}, []
    for channels in range(4, 200, 4):
        network = Network(arch=arch, **{**SMALL, "channels": channels, "multipliers": (1, 1)})
        try:
            with torch.device("meta"):
                build.field(build.architecture(network, (3, 8, 8), 0))
            made[channels] = True
        except UserError as error:
            made[channels] = False
            said.append((channels, str(error)))
    assert all(f"channels {n} " in line and "\n" not in line for n, line in said)
    for channels, works in made.items():
        widths = [channels, 2 * channels]  # of a block, and with the state that joins it
        groups = [max(1, min(32, width // 4)) for width in widths]
        divides = all(w % n == 0 for w, n in zip(widths, groups, strict=True))
        heads = max(1, channels // 64)
        assert works == (
            arch == "small_unet" or (divides and (arch != "adm" or not channels % heads))
        )


NETWORK = {"model.enc.8x8_conv.weight": (8, 1, 3, 3), "model.map_layer0.weight": (32, 8),
           "model.enc.8x8_block0.norm0.weight": (8,),
           "model.enc.8x8_block0.conv1.weight": (8, 8, 3, 3)}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"model.enc.8x8_conv.weight": (8,)},
    {"model.map_label.weight": (8,)},
    {"model.map_augment.weight": (8,)},
    {"model.map_augment.weight": (8, 2000)},
    {"model.map_layer0.weight": (32, 0)},
    {"model.map_layer0.weight": (32, 2)},
    {"model.map_layer0.weight": ()},
    {"model.enc.8x8_block0.conv1.weight": (0, 8, 3, 3)},
    {"model.enc.9999999999x9999999999_block0.norm0.weight": (8,)},
    {f"model.enc.{'9' * 5000}x{'9' * 5000}_block0.norm0.weight": (8,)},
    {"model.enc.99999x99999_block0.norm0.weight": (8,)},
])  # fmt: skip
def test_shapes_of_no_network_are_one_line(tmp_path, change):
    shapes = {**NETWORK, **change}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"^[^\n]{1,900}$") as caught:
        importing.convert(tmp_path / "x.pth", tmp_path / "flow.safetensors")
    assert str(caught.value).isprintable()
    with contextlib.suppress(UserError):  # some are another architecture's
        importing.infer(shapes, "x")


def test_foreign_names_cannot_drive_the_terminal(tmp_path):
    tensors = {name: torch.zeros(shape) for name, shape in NETWORK.items()}
    for name in ("a\x1b[2J", "a\nrfpp: fine", "a\u202eb"):
        torch.save({**tensors, name: torch.zeros(1)}, tmp_path / "x.pth")
        with pytest.raises(UserError) as caught:
            importing.convert(tmp_path / "x.pth", tmp_path / "flow.safetensors")
        assert str(caught.value).isprintable()
    assert quoted("a\x1b[2J\u202e\n") == "a\\x1b[2J\\u202e\\n"
    assert quoted("x" * 1000) == "x" * 200 + "..."
    assert quoted(10**5000).isprintable()


def test_narrow_attention_of_adm_is_refused_by_name(tmp_path):
    path, _ = edm(tmp_path, "adm", channels=32, augment=0)
    state = {name: t for name, t in torch.load(path, weights_only=True).items()
             if "qkv" not in name and "proj" not in name and "norm2" not in name}  # fmt: skip
    torch.save(state, path)
    with pytest.raises(UserError, match="below 64 channels"):
        importing.convert(path, tmp_path / "flow.safetensors")
