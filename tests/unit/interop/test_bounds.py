"""What reading a hostile file may cost: 20 seconds and little memory, in every command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.unit.interop import hostile_code, hostile_data
from tests.unit.interop.bounds import FAULTS, SPARE

SECONDS = 20

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with /proc"),
    pytest.mark.filterwarnings(
        "ignore:Detected pickle protocol", "ignore:Validating sparse", "ignore:.torch.jit"
    ),
]


def named(*tables):
    return {f"{i}, {name}": case for i, table in enumerate(tables) for name, case in table.items()}


PICKLES = named(
    {name: hostile_code.malicious(name) for name in hostile_code.MALICIOUS},
    hostile_code.STORAGES, hostile_code.CLAIMS, hostile_code.OPCODES, hostile_data.TENSORS,
    hostile_data.NETWORKS, hostile_data.UNKNOWN_NETWORKS, hostile_data.OTHER_VERSIONS,
    hostile_data.UNKNOWN_LAYOUTS,
)  # fmt: skip
FILES = named(
    hostile_code.STATE_DICTS, hostile_data.NO_STATE_DICTS, hostile_data.GARBAGE,
    hostile_data.ARCHIVES, hostile_data.COSTLY, hostile_data.SETTINGS,
)  # fmt: skip
SAFETENSORS = dict(hostile_data.SAFETENSORS)
OURS = {"weights of another type": SAFETENSORS.pop("weights of another type")}  # converted
CASES = {
    "import-checkpoint": named(PICKLES, FILES, SAFETENSORS),
    "sample": named(SAFETENSORS, OURS, hostile_data.GARBAGE, hostile_data.COSTLY),
    "vgg_path": named(
        hostile_code.STATE_DICTS,
        hostile_data.NO_STATE_DICTS,
        hostile_data.ARCHIVES,
        hostile_data.COSTLY,
    ),
}


def measured(folder, command, cases, seconds=SECONDS):
    """By case: its file, and what the command said of it, how it ended, its time and memory
    beside those of an empty file."""
    cases = {"empty": hostile_code.content(b""), **cases}
    paths = [folder / f"{i:03d}" for i in range(len(cases))]
    for path, case in zip(paths, cases.values(), strict=True):
        case.write(path)
    run = [sys.executable, "-m", "tests.unit.interop.bounds", command, str(seconds)]
    done = subprocess.run([*run, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, *found = map(json.loads, done.stdout.splitlines())
    for result in found:
        result["memory"] = result.get("memory", 0) - own.get("memory", 0)
    return dict(zip(list(cases)[1:], zip(paths[1:], found, strict=True), strict=True))


def broken(path, found):
    """What of the promise does not hold."""
    said, most = found["said"].removesuffix("\n"), 2 * path.stat().st_size + SPARE
    if "signal" in found:
        yield f"ended by {found['signal']}"
    if found.get("code", 2) != 2:
        yield f"exit code {found['code']}"
    if not said.startswith("rfpp: ") or not said.isprintable():
        yield f"no clean line: {said!r}"
    if found["seconds"] > SECONDS:
        yield f"{found['seconds']:.0f} s"
    if found["memory"] > most:
        yield f"{found['memory']:,} bytes, {most:,} allowed"


@pytest.mark.parametrize("command", CASES)
def test_a_hostile_file_costs_little_and_ends_in_one_line(tmp_path, command):
    """20 s, twice the file and half a GiB of memory, exit code 2; nothing of it is run."""
    results = measured(tmp_path, command, CASES[command])
    wrong = {name: list(broken(*result)) for name, result in results.items()}
    assert not {name: lines for name, lines in wrong.items() if lines}
    assert not (tmp_path / "canary").exists()


def test_a_reader_that_breaks_the_promise_is_seen(tmp_path):
    """And does not end the measurement of the files after it."""
    cases = {name: hostile_code.content(name.encode()) for name in FAULTS}
    results = measured(tmp_path, "fault", cases, seconds=3)
    seen = {name: "; ".join(broken(*result)) for name, result in results.items()}
    assert "ended by SIGSEGV" in seen["crash"]
    assert "ended by SIGALRM" in seen["hang"]
    assert "bytes, 536,870,924 allowed" in seen["memory"]
    assert "exit code 1" in seen["traceback"]
    assert "no clean line: 'rfpp: one\\nrfpp: two'" in seen["two lines"]
