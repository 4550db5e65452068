import pytest
import torch
from safetensors.torch import save_file

from rfpp_core import load_flow
from rfpp_core.config import build, params, rules
from rfpp_core.errors import UserError
from rfpp_core.storage import checkpoint
from tests.helpers import save_tiny, tiny_arch
from tests.unit.interop.hostile_data import LARGE, SAFETENSORS


def test_equal_content_gives_equal_bytes(tmp_path):
    a, b = save_tiny(tmp_path / "a.safetensors"), save_tiny(tmp_path / "b.safetensors")
    assert a.read_bytes() == b.read_bytes()


def test_one_file_is_enough_to_sample(tmp_path):
    flow = load_flow(save_tiny(tmp_path / "a.safetensors"))
    assert flow.sample(n=3, nfe=2).shape == (3, 1, 8, 8)
    assert not any(p.requires_grad for p in flow.field.parameters())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; `dvc repro` makes it"),
        (b"", "not a readable safetensors file"),
        (b"\x80\x04\x95pickle", "not a readable safetensors file"),
        (b"\xff" * 200, "not a readable safetensors file"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_flow(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = save_tiny(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable"):
        load_flow(path)


def test_a_changed_byte_is_refused_wherever_it_is(tmp_path):
    path = save_tiny(tmp_path / "flow.safetensors")
    content = path.read_bytes()
    for at in [*range(8, 1500, 37), *range(1500, len(content), 991), len(content) - 1]:
        if content[at] == ord(" "):  # padding of the header
            continue
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(
            UserError, match=r"is corrupted|not a readable|was not written|earlier"
        ):
            checkpoint.load(path)
    path.write_bytes(content)
    checkpoint.load(path)


def test_a_file_without_digest_is_an_earlier_version_s(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "m", metadata={"rfpp": "{}"})
    with pytest.raises(UserError, match="earlier version; `rfpp import-checkpoint`"):
        checkpoint.load(tmp_path / "m")


def said_of(path, case):
    """The one line about the file of a case."""
    case.write(path)
    with pytest.raises(UserError) as caught:
        load_flow(path)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 700
    return said


def test_a_file_cannot_drive_the_terminal(tmp_path):
    plain = r"\x1b[31mX\nY\u202e"
    said = said_of(tmp_path / "m", SAFETENSORS["a type that drives the terminal"])
    assert "is not a readable safetensors file" in said
    assert f"unknown variant `{plain}`" in said
    said = said_of(tmp_path / "m", SAFETENSORS["a start that drives the terminal"])
    assert f"starts at {plain}; a flow starts" in said
    said_of(tmp_path / "m", SAFETENSORS["a name that drives the terminal"])


@pytest.mark.parametrize("name", LARGE)
def test_what_is_larger_than_a_network_s_is_refused_before_it_is_read(tmp_path, name):
    assert LARGE[name].message in said_of(tmp_path / "m", LARGE[name])
    with pytest.raises(UserError, match=LARGE[name].message):
        checkpoint.stated_metadata(tmp_path / "m", {})


def test_the_longest_loss_curve_is_read_again(tmp_path, smoke):
    """Row by row as trainings save it; a longer one is refused before anything is computed."""
    names = ["loss", "pseudo_huber", "lpips", "lr", "grad_norm"]
    row = [["step", 10**7], *([name, "-1.23457e-05"] for name in names)]
    checkpoint.save_state(tmp_path, 5, {"x": torch.zeros(1)}, {"curve": [row] * rules.MOST_ROWS})
    assert len(checkpoint.load_state(tmp_path, 5).metadata["curve"]) == rules.MOST_ROWS
    raw = smoke.model_dump()
    raw["recipes"]["reflow"] |= {"steps": 50_001, "log_every": 1}
    with pytest.raises(UserError, match=r"recipes\.reflow: 50001 steps .* raise log_every"):
        params.parse(raw)
    raw["recipes"]["reflow"]["steps"] = 50_000
    params.parse(raw)


def test_weights_of_another_type_are_refused(tmp_path):
    said = said_of(tmp_path / "m", SAFETENSORS["weights of another type"])
    assert "model.stem.bias is of torch.int64, not torch.float32" in said


def test_wrong_shapes_are_listed(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = build.field(tiny_arch()).state_dict()
    tensors["model.stem.weight"] = torch.zeros(4, 4)
    tensors["model.extra"] = torch.zeros(1)
    del tensors["model.stem.bias"]
    checkpoint.save(path, tensors, {"architecture": tiny_arch()})
    with pytest.raises(UserError) as error:
        load_flow(path)
    for part in ("stem.weight is (4, 4), not (8, 1, 3, 3)", "stem.bias missing", "extra unknown"):
        assert part in str(error.value)


@pytest.mark.parametrize("metadata", [{}, {"architecture": {"arch": "other", "shape": [1, 8, 8]}}])
def test_foreign_metadata_is_refused(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"x": torch.zeros(1)}, metadata)
    with pytest.raises(UserError):
        load_flow(path)


def test_states_keep_the_newest_and_skip_damage(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save_state(tmp_path, step, {"x": torch.tensor([step])}, {"step": step})
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "state-000000020.safetensors", "state-000000030.safetensors",
    ]  # fmt: skip
    assert checkpoint.load_state(tmp_path, 100).metadata["step"] == 30
    assert checkpoint.load_state(tmp_path, 29).metadata["step"] == 20
    assert checkpoint.load_state(tmp_path, 19) is None
    newest = tmp_path / "state-000000030.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    said = []
    assert checkpoint.load_state(tmp_path, 100, said.append).metadata["step"] == 20
    assert [line[:34] for line in said] == ["the state of step 30 is corrupted "]


def test_a_state_whose_marker_was_never_written_is_cleared_away(tmp_path):
    checkpoint.save(tmp_path / "state-000000005.safetensors", {"x": torch.zeros(1)}, {"step": 5})
    for step in (10, 20):
        checkpoint.save_state(tmp_path, step, {"x": torch.tensor([step])}, {"step": step})
    assert not (tmp_path / "state-000000005.safetensors").exists()


def test_a_shorter_training_beside_a_longer_one(tmp_path):
    for step in (10, 20, 30, 4, 8, 9):
        checkpoint.save_state(tmp_path, step, {"x": torch.tensor([step])}, {"step": step})
    assert checkpoint.load_state(tmp_path, 9).metadata["step"] == 9
    assert checkpoint.load_state(tmp_path, 100).metadata["step"] == 30


def test_a_flow_is_its_weights_and_architecture(tmp_path):
    one = load_flow(save_tiny(tmp_path / "a.safetensors"))
    tensors, metadata, _ = checkpoint.load(tmp_path / "a.safetensors")
    checkpoint.save(tmp_path / "b.safetensors", tensors, {**metadata, "note": "other metadata"})
    assert load_flow(tmp_path / "b.safetensors").digest == one.digest
    assert load_flow(save_tiny(tmp_path / "c.safetensors", seed=1)).digest != one.digest
