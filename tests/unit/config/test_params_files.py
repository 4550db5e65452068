"""Files of params as people and editors write them: read as DVC reads them, or one line."""

import io
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from rfpp_core.config import params, yaml_file
from rfpp_core.errors import UserError
from tests.helpers import ROOT
from tests.helpers import SMOKE as TEXT

SMOKE = params.parse(yaml_file.parse(TEXT, "smoke"))
quick = settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "params.yaml"


def refused(file, text: str | bytes) -> str:
    """The line that a file is refused with."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        params.load(file)
    line = str(error.value)
    assert line.isprintable()  # one line, and no control characters
    assert len(line) < 2000
    return line


@pytest.mark.parametrize(
    "text",
    ["010", "1:30", "1e-3", "1e5", "-3", "0x1F", "0o17", "yes", "on", "true", "TRUE", "~", "null",
     "", ".inf", "-.INF", "1_000", "+.5", "1.", "+12", "08", "1:30.5", "y", "'1'", "0b11", "1e",
     "1.0e-8", "a: 1", "[1, 1e1]", "{a: no}"],
)  # fmt: skip
def test_scalars_are_read_as_dvc_reads_them(file, text):
    """DVC's own reader is ruamel.yaml, by YAML 1.2."""
    text = f"k:\n  {text}\n"
    file.write_text(text)
    ours, theirs = yaml_file.read(file), YAML(typ="safe", pure=True).load(io.StringIO(text))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "changed",
    [TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT, TEXT.replace("false", "no"),
     TEXT.replace("false", "False"), TEXT.replace("lr: 0.002", "lr: 2e-3"),
     TEXT.replace("steps: 100", "steps: 1e2"), TEXT + "\n\n# end",
     TEXT.replace("times: {distribution: uniform", "times: &a {distribution: uniform"),
     yaml.safe_dump(yaml.safe_load(TEXT))],
    ids=["crlf", "byte order mark", "no", "False", "2e-3", "1e2", "comment", "anchor", "dumped"],
)  # fmt: skip
def test_other_spellings_say_the_same(file, changed):
    file.write_bytes(changed.encode())
    assert params.load(file) == SMOKE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT + "seed: 5\n", 'found duplicate key "seed"'),
        (TEXT.replace("    lr: 0.002", "    lr: 0.002\n    lr: 0.5"), 'found duplicate key "lr"'),
        (TEXT.replace("    steps: 100", "\tsteps: 100"), "character '\\t' that cannot start"),
        (TEXT.encode("utf-16"), "is not YAML: 'utf-8' codec"),
        ("seed: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("seed: " + "9" * 30, "less than 9223372036854775808"),
        ("recipes: {a: {steps: 1" + "0" * 30 + "}}", "recipes.a.steps is 1000"),
        ("recipes: {a: {lr: .nan}}", "recipes.a.lr is nan: input should be a finite number"),
        ("seed: " + "[" * 1500 + "]" * 1500, "nested too deeply"),
        ("seed: &a [*a]", "seed is [[["),
        ("a: &a [x, x]\nseed: &b [*a, *a, *a, *a]\ndataset: [*b, *b, *b]", "seed is [["),
        ("x" * 2**20 + "y", "at most 1048576 are read"),
        ('"a\\e[31m\\nb": 1', r"unknown param 'a\x1b[31m\nb'"),
        ('seed: "' + "x" * 10000 + '"', "..."),
        ("pairs: {2: {teacher: flow1}}", "pairs has a row named 2; a name is made of a-z, 0-9"),
        ('pairs: {"\\e[1m": {teacher: flow1}}', r"pairs has a row named '\x1b[1m'; a name"),
        ("pairs: {true: {teacher: flow1}}", "pairs has a row named True; a name is made of a-z"),
        ("flows:\n  ? " + "a" * 5000 + "\n  : {}\n", "flows has a row named 'aaa"),
        ("pairs: {a: {teacher: flow" + "9" * 5000 + "}}", "pairs.a.teacher is 'flow999"),
        ("pairs: {a: {}}", "pairs.a.teacher is missing"),
        (
            "flows: {a: {x: 1}}",
            "unknown param 'flows.a.x' (allowed: data, domains, many_seeds",
        ),
        ("networks: {a: 3}", "networks.a is 3: input should be a valid dictionary"),
        ("evaluate: {grids: {2: [1.0]}}", "evaluate.grids.2 is 2: it must be a string; write it"),
        ("evaluate: {grids: {²: [1.0]}}", "grids.² must be"),
        ('dataset: {path: "a\\0b"}', "dataset.path is"),
        ("? [1, 2]\n: 3", "keys should be strings"),
        ("seed: 1\n---\nseed: 2", "but found another document"),
    ],
)
def test_what_is_refused_is_one_line(file, text, said):
    assert said in refused(file, text)


def test_what_is_no_file_is_one_line(tmp_path, file):
    os.mkfifo(tmp_path / "fifo")
    file.write_text(TEXT)
    (tmp_path / "loop").symlink_to("loop")
    for path, said in ((tmp_path, "is not a file"), (tmp_path / "fifo", "is not a file"),
                       (tmp_path / "loop", "symbolic links"),
                       (tmp_path / ("b" * 300), "cannot be read: File name too long"),
                       (file / "x", "cannot be read: Not a directory")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            params.load(path)
    (tmp_path / "link").symlink_to(file)
    assert params.load(tmp_path / "link") == SMOKE


def load_or_line(file, text: bytes) -> None:
    """Params, or one line."""
    file.write_bytes(text)
    line = ""
    try:
        params.load(file)
    except UserError as error:
        line = str(error)
    assert line == "" or line.isprintable()
    assert len(line) < 10_000


@quick
@given(st.data())
def test_edited_bytes_are_params_or_one_line(file, data):
    """Cuts, repetitions and insertions anywhere in a good file."""
    text = TEXT.encode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 40))
        new = data.draw(st.one_of(
            st.binary(max_size=6), st.just(text[at : at + length] * 2),
            st.sampled_from([b"&a ", b"*a", b"<<: *a", b"!!", b"- ", b"? ", b": ", b"|\n",
                             b"---\n", b"\t", b"\r", b"'", b'"', b"{", b"]", b"#", b"1e400"]),
        ))  # fmt: skip
        text = text[:at] + new + text[at + length :]
    load_or_line(file, text)


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from(["flow1", "flow2", "pairs2", "unet", "images", "pretrain", "1e-3", "2",
                     "euler", 0, 1, 2, -1, 10**30]),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(leaves, inner, max_size=3),
    max_leaves=6,
)


def leaves_of(tree, path=()):
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves_of(value, (*path, key))


@quick
@given(st.data())
def test_edited_values_are_params_or_one_line(file, data):
    """Any value in the place of any section or option of a good file."""
    tree = yaml.safe_load(TEXT)
    *sections, last = data.draw(st.sampled_from(list(leaves_of(tree))))
    at = tree
    for section in sections:
        at = at[section]
    at[last] = data.draw(values)
    load_or_line(file, yaml.safe_dump(tree).encode())


def test_a_stage_leaves_with_code_2_and_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\nseed: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.prepare"], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith('rfpp: params.yaml is not YAML: found duplicate key "seed"')
