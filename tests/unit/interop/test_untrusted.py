"""Files of strangers: whatever is in them, the answer is a result or a declared error."""

import contextlib
import functools
import io
import json
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rfpp_core.config import build, params
from rfpp_core.config.network import Network
from rfpp_core.errors import UserError
from rfpp_core.interop import foreign, importing
from rfpp_core.pairs.spec import Pairs
from rfpp_core.pairs.store import PairStore
from rfpp_core.pairs.verify import verify
from rfpp_core.storage import checkpoint, files
from tests.helpers import SMOKE, randomised, spec_for, tiny_arch

few = settings(max_examples=60, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


def places(document, *outer):
    """The paths of all sections, rows and values of a document."""
    for name, value in document.items():
        yield (*outer, name)
        if isinstance(value, dict):
            yield from places(value, *outer, name)


def with_value(document, place, value):
    """A copy of a document with something else in one place."""
    name, *inner = place
    return {**document, name: with_value(document[name], inner, value) if inner else value}


WHOLE = yaml.safe_load(SMOKE)
PLACES = list(places(WHOLE))


def declared(call):
    """Runs it; only a user's error of one line may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except UserError as error:
            said = str(error)
    assert "\n" not in said
    return None


@few
@given(st.sampled_from(PLACES), documents)
def test_params_with_anything_in_a_place(place, value):
    declared(lambda: params.parse(with_value(WHOLE, place, value)))


@few
@given(st.binary(max_size=200) | documents.map(lambda d: yaml.safe_dump(d).encode()))
def test_params_files(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    declared(lambda: params.load(path))


def test_yaml_runs_nothing(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: !!python/object/apply:pathlib.Path.touch ['{tmp_path}/ran']\n")
    with pytest.raises(UserError, match="is not YAML"):
        params.load(path)
    assert not (tmp_path / "ran").exists()


METADATA = {"architecture": tiny_arch(), "provenance": {"stage": "pretrain"}, "start": 1.0}


def write_model(path, tensors, metadata):
    """As a stranger would who knows the digest; a document with NaN has none."""
    if isinstance(metadata, dict):
        with contextlib.suppress(ValueError):
            metadata = {**metadata, "sha256": files.digest([metadata, checkpoint.digest(tensors)])}
    save_file(dict(tensors), path, metadata={"rfpp": json.dumps(metadata)})


@few
@given(st.sampled_from([*METADATA["architecture"], "all", "start", "architecture"]), documents)
def test_model_metadata(tmp_path, place, value):
    """One part of the document is anything; big enough networks would be an attack by size."""
    metadata = json.loads(json.dumps(METADATA))
    if place in metadata:
        metadata[place] = value
    elif place == "all":
        metadata = value
    else:
        metadata["architecture"][place] = value
    tensors = randomised(build.field(tiny_arch())).state_dict()
    write_model(tmp_path / "m.safetensors", tensors, metadata)
    declared(lambda: build.load_flow(tmp_path / "m.safetensors"))


@few
@given(st.binary(max_size=300))
def test_model_files(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert declared(lambda: build.load_flow(path)) is None


def test_a_network_too_large_to_build_is_refused(tmp_path):
    """The metadata of a small file cannot make the reader allocate without bound."""
    metadata = json.loads(json.dumps(METADATA))
    metadata["architecture"] |= {"channels": 8 * 10**6, "multipliers": [10**4] * 6}
    write_model(tmp_path / "m.safetensors", {"x": torch.zeros(1)}, metadata)
    with pytest.raises(UserError, match="not an architecture"):
        build.load_flow(tmp_path / "m.safetensors")


@pytest.fixture
def store(tmp_path):
    made = PairStore.create(tmp_path / "pairs.zarr", spec_for(), 20)
    images = np.zeros((20, 1, 8, 8), np.uint8)
    made.commit(0, Pairs(images, np.full(20, -1, np.int16), None))
    return made


@few
@given(st.binary(max_size=100) | documents.map(lambda d: json.dumps(d).encode()))
def test_markers(store, content):
    (store.path / "commits/000000.json").write_bytes(content)
    declared(lambda: verify(PairStore.open(store.path)))
    declared(lambda: PairStore.open(store.path).read_all())


SPEC = spec_for().document


@few
@given(st.sampled_from([*SPEC, "all"]), documents)
def test_store_metadata(store, name, value):
    meta = store.path / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["rfpp"] = value if name == "all" else {**SPEC, name: value}
    meta.write_text(json.dumps(document))
    declared(lambda: PairStore.open(store.path).read_all())


def test_a_shard_too_large_to_hold_is_refused(tmp_path):
    """Some kilobytes of metadata may claim gigabytes of black images."""
    spec = spec_for(shape=(1, 64, 64), shard=150_000, micro_batch=50)
    path = tmp_path / "large.zarr"
    with pytest.raises(UserError, match="shards of 150000 images of 1x64x64 are too large"):
        PairStore.create(path, spec, 150_000)
    with pytest.raises(UserError, match="too large"):
        PairStore.open(path)


ARRAY_KEYS = ["shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
              "attributes", "zarr_format", "node_type", "storage_transformers"]  # fmt: skip


@few
@given(st.sampled_from(ARRAY_KEYS), documents, st.sampled_from(["images", "labels"]))
def test_array_metadata(store, key, value, name):
    meta = store.path / name / "zarr.json"
    before = meta.read_text()
    meta.write_text(json.dumps(json.loads(before) | {key: value}))
    declared(lambda: PairStore.open(store.path).read_all())
    declared(lambda: verify(PairStore.open(store.path)))
    meta.write_text(before)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**15, 1, 8, 8]},
        {"shape": [-1, 1, 8, 8]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 1, 8, 8]}}},
        {"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]},
        {"data_type": "float64"},
        {"storage_transformers": [{"name": "x"}]},
    ],
)
def test_arrays_that_this_project_would_not_make(store, change):
    """Foreign codecs, chunks or lengths are refused before anything is decoded or allocated."""
    meta = store.path / "images" / "zarr.json"
    before = meta.read_text()
    meta.write_text(json.dumps(json.loads(before) | change))
    with pytest.raises(UserError, match="images"):
        PairStore.open(store.path)
    meta.write_text(before)
    PairStore.open(store.path)


@few
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x04", b"\x80\x02}q\x00"])
)
def test_checkpoints(tmp_path, content, head):
    path = tmp_path / "net.pkl"
    path.write_bytes(head + content)
    assert declared(lambda: foreign.read(path)) is None


@functools.cache
def genuine():
    """Genuine files of every kind, of a real network."""
    state = randomised(build.field(EDM)).state_dict()
    made = {}
    for protocol in (2, 4):
        for zipped in (True, False):
            torch.save(state, buffer := io.BytesIO(), pickle_protocol=protocol,
                       _use_new_zipfile_serialization=zipped)  # fmt: skip
            made[f"{protocol}{zipped}"] = buffer.getvalue()
    made["safetensors"] = safetensors.torch.save(state)
    return made


network = Network(arch="ncsnpp", channels=4, multipliers=(1,), blocks=1, augment=0)
EDM = build.architecture(network, (1, 4, 4), 0)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "repeat"]),
              st.binary(min_size=1, max_size=8)), max_size=4)  # fmt: skip


@settings(few, max_examples=120)
@given(st.sampled_from(["2True", "2False", "4True", "4False", "safetensors"]), edits)
def test_mutated_checkpoints(tmp_path, kind, changes):
    """Half of the changes are in the first kilobytes, where names and sizes are."""
    content = bytearray(genuine()[kind])
    for where, change, data in changes:
        at = int(where**3 * (len(content) - 1))
        if change == "flip":
            content[at : at + len(data)] = data
        elif change == "cut":
            del content[at : at + 16 * len(data)]
        else:
            content[at:at] = data * (1000 if change == "repeat" else 1)
    (tmp_path / "net").write_bytes(content)
    metadata = declared(lambda: importing.convert(tmp_path / "net", tmp_path / "out.safetensors"))
    assert metadata is not None or changes
