"""Hostile checkpoints that try to run something or claim what is not there.

Each case writes a file and names what must be said of it.  ``test_hostile`` refuses them one by
one; ``test_bounds`` gives them to the commands that read such files, and measures.
"""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tests.unit.interop.layouts import (
    Call,
    Precond,
    claim,
    nested,
    persistence,
    put,
    storage_head,
    text,
)


class Case(NamedTuple):
    """Writes a file to a path; a part of the line that must be said of it."""

    write: Callable[[Path], object]
    message: str = ""


def content(make, message=""):
    """A case of bytes, or of what makes them."""
    return Case(lambda path: put(path, make() if callable(make) else make), message)


def saved(thing, message="", zipped=True):
    return Case(
        lambda path: torch.save(thing, path, _use_new_zipfile_serialization=zipped), message
    )


# ---- pickles that would run something


def command(canary):
    return f"touch '{canary}'"


def code(canary):
    return f"open({str(canary)!r}, 'w')"


SYSTEM = f"{os.system.__module__}.system"
MALICIOUS = {
    "a shell": (lambda c: pickle.dumps({"ema": Call(os.system, command(c))}), SYSTEM),
    "a shell by protocol 0": (lambda c: pickle.dumps(Call(os.system, command(c)), 0), SYSTEM),
    "eval": (lambda c: pickle.dumps([Call(eval, code(c))]), "builtins.eval"),
    "exec in protocol 2": (lambda c: pickle.dumps(Call(exec, code(c)), 2), "__builtin__.exec"),
    "getattr": (lambda c: pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
                "builtins.getattr"),
    "an import": (lambda c: b"\x80\x02ccanary_of_foreign\nthing\n.", "canary_of_foreign.thing"),
    "an import of the top": (
        lambda c: b"\x80\x04" + text("canary_of_foreign") + text("") + b"\x93.",
        "canary_of_foreign.",
    ),
    "a dotted name": (
        lambda c: b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys") + b"\x93.",
        "collections.OrderedDict.fromkeys",
    ),
    "a name dotted elsewhere": (
        lambda c: b"\x80\x04" + text("torch.nn.modules") + text("container.ModuleDict") + b"\x93.",
        "torch.nn.modules.container.ModuleDict",
    ),
    "a dotted module function": (
        lambda c: b"\x80\x04" + text("torch.storage") + text("_load_from_bytes.__globals__")
        + b"\x93.", "torch.storage._load_from_bytes.__globals__",
    ),
    "INST": (lambda c: b"(" + text(command(c)) + b"iposix\nsystem\n.", "posix.system"),
    "OBJ": (lambda c: b"(cposix\nsystem\n" + text(command(c)) + b"o.", "posix.system"),
    "OBJ of an allowed name": (lambda c: b"(ccollections\nOrderedDict\no.", "opcode OBJ"),
    "NEWOBJ": (lambda c: b"\x80\x02csubprocess\nPopen\n" + text("id") + b"\x85\x81.",
               "subprocess.Popen"),
    "NEWOBJ_EX": (lambda c: b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX"),
    "EXT1": (lambda c: b"\x80\x02\x82\xf0" + text(command(c)) + b"\x85R.", "opcode EXT1"),
    "EXT2": (lambda c: b"\x80\x02\x83\xf0\0" + text(command(c)) + b"\x85R.", "opcode EXT2"),
    "EXT4": (lambda c: b"\x80\x02\x84\xf0\0\0\0" + text(command(c)) + b"\x85R.", "opcode EXT4"),
    "PERSID": (lambda c: b"Pstorage\n.", "opcode PERSID"),
    "BINPERSID": (lambda c: b"\x80\x02" + text("storage") + b"Q.", "opcode BINPERSID"),
    "a state for a container": (
        lambda c: b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb.",
        "a state for something",
    ),
    "a state for a function": (
        lambda c: b"\x80\x02ctorch.storage\n_load_from_bytes\n}" + text("__code__") + b"K\x01sb.",
        "a state for something",
    ),
    "a call of text": (lambda c: b"\x80\x02" + text("os.system") + text("id") + b"\x85R.",
                       "corrupted or not a checkpoint"),
    "an ordered dict of arguments": (
        lambda c: b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "collections.OrderedDict of",
    ),
    "a module with arguments": (
        lambda c: b"\x80\x02ctorch.nn.modules.container\nModuleDict\n}\x85\x81.",
        "ModuleDict of",
    ),
    "an object scalar": (
        lambda c: pickle.dumps([np.array([Call(os.system, command(c))], object)[:1].dtype]),
        "numpy.dtype of",
    ),
    "an array": (lambda c: pickle.dumps(np.zeros(3)), "multiarray._reconstruct"),
    "a parameter with state": (
        lambda c: pickle.dumps(Call(torch._utils._rebuild_parameter_with_state, 1, 2, 3, 4)),
        "torch._utils._rebuild_parameter_with_state",
    ),
    "lines in a name": (
        lambda c: b"\x80\x04" + text("evil\x1b[2J\nfine") + text("x\ud7ff\n") + b"\x93.", "evil",
    ),
}  # fmt: skip


def malicious(name):
    """A case whose canary lies beside the file."""
    make, message = MALICIOUS[name]
    return Case(lambda path: put(path, make(path.with_name("canary"))), message)


def malicious_state_dict(make, message, zipped):
    def write(path):
        with persistence():
            evil = {"weight": torch.ones(3), "evil": make(path.with_name("canary"))}
            torch.save(evil, path, _use_new_zipfile_serialization=zipped)

    return Case(write, f"{message}, which is refused: only tensors are read")


STATE_DICTS = {
    f"{name} {'zipped' if zipped else 'legacy'}": malicious_state_dict(make, message, zipped)
    for zipped in (True, False)
    for name, make, message in [
        ("a shell", lambda c: Call(os.system, command(c)), SYSTEM),
        ("eval", lambda c: Call(eval, code(c)), "eval"),
        ("a network", lambda c: Precond(), "_reconstruct_persistent_obj"),
    ]
}


# ---- storages


def storage(payload, message=""):
    """A case of a storage saved as bytes in an NVlabs pickle."""
    return Case(lambda path: put(path, nested(payload(path))), message)


def shell(path):
    return Call(os.system, command(path.with_name("canary")))


def evil_archive(path):
    torch.save(shell(path), path)
    return path.read_bytes()


HEAD = storage_head(0)[: -len(pickle.dumps(0, 2))]
STORAGES = {
    "a shell": storage(lambda p: storage_head(shell(p)), SYSTEM),
    "a shell alone": storage(lambda p: pickle.dumps(shell(p), 2), SYSTEM),
    "a shell by protocol 4": storage(lambda p: storage_head(shell(p), 4)),
    "a type from elsewhere": storage(lambda p: HEAD + claim(1, "posix system"), SYSTEM),
    "memory": storage(lambda p: storage_head(Call(bytearray, 1 << 40)), "__builtin__.bytearray"),
    "a long shell": storage(lambda p: storage_head(Call(os.system, "#" * 9000)), SYSTEM),
    "a long text": storage(lambda p: storage_head("#" * 9000), "cut short"),
    "a list": storage(
        lambda p: storage_head([]) + pickle.dumps([], 2), "something else than a storage"
    ),
    "a size": storage(lambda p: storage_head(torch.Size([1]))),
    "an archive": storage(evil_archive, "an archive in a storage"),
    "nothing": storage(lambda p: b""),
}
CLAIMS = {
    f"{numel} elements, then {len(data)} bytes": storage(
        lambda p, n=numel, d=data: HEAD + claim(n) + pickle.dumps(["0"], 2) + d
    )
    for numel in (-1, 3, 1 << 20, 1 << 33, 1 << 40, 1 << 61, (1 << 63) - 1)
    for data in (b"", struct.pack("<q", numel), struct.pack("<q", 2) + b"12345678")
}
OPCODES = {
    f"{opcode[:9]!r} of {len(opcode)}": content(b"\x80\x04" + opcode)
    for opcode in [
        b"\x8e" + struct.pack("<Q", 1 << 40),  # BINBYTES8
        b"\x8e" + struct.pack("<Q", 1 << 60),
        b"\x96" + struct.pack("<Q", (1 << 64) - 1),  # BYTEARRAY8
        b"B" + struct.pack("<I", (1 << 32) - 1),  # BINBYTES
        b"\x8d" + struct.pack("<Q", 1 << 40),  # BINUNICODE8
        b"X" + struct.pack("<I", (1 << 32) - 1),  # BINUNICODE
        b"\x95" + struct.pack("<Q", 1 << 60),  # FRAME
        b"\x8b" + struct.pack("<i", (1 << 31) - 1),  # LONG4
        b"\x8b" + struct.pack("<i", -1),
        b"T" + struct.pack("<i", (1 << 31) - 1),  # BINSTRING
        b"(" * 100_000,
        b"(" * 2000 + b"t" * 2000,
        b"r\xff\xff\xff\xff",  # LONG_BINPUT on nothing
        b"I" + b"9" * 10_000 + b"\n",
        b"c" + b"x" * 10_000,
    ]
}  # fmt: skip
