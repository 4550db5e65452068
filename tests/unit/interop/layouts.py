"""Files in the layouts that are read: NVlabs pickles made without their code, and torch's own,
opcode by opcode where torch would not write them."""

import contextlib
import math
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import torch
from torch import nn

PERSISTENT = "torch_utils.persistence"


@contextlib.contextmanager
def persistence():
    """A module of that name while something is pickled, so that pickle finds the function."""

    def _reconstruct_persistent_obj(meta):
        raise SystemExit("executed")

    module = types.ModuleType(PERSISTENT)
    _reconstruct_persistent_obj.__module__ = PERSISTENT
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules[PERSISTENT] = module
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    try:
        yield module
    finally:
        del sys.modules[PERSISTENT], sys.modules["torch_utils"]


class Persistent(nn.Module):
    """A module that pickles as its source and its attributes."""

    def __init__(self, **kwargs):
        super().__init__()
        self._init_args = ((),)
        self._init_kwargs = kwargs

    def __reduce__(self):
        return sys.modules[PERSISTENT]._reconstruct_persistent_obj, (self.meta(),)

    def meta(self):
        return {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('executed')\n" * 20,
            "class_name": type(self).__name__,
            "state": self.__dict__,
        }


class Block(Persistent):
    def __init__(self, size, first=False):
        super().__init__(size=size)
        self.size = size
        self.skip_scale = np.sqrt(0.5)
        self.heads = np.int64(2)
        self.flag = np.bool_(True)
        self.small = np.float32(0.1)
        self.weight = nn.Parameter(torch.randn(size, 3, 3, 3))
        self.bias = None if first else nn.Parameter(torch.randn(size))
        self.register_buffer("resample_filter", torch.rand(1, 1, 2, 2) if first else None)
        self.register_buffer("scratch", torch.zeros(5), persistent=False)


class Net(Persistent):
    def __init__(self, size=4, blocks=2):
        super().__init__(size=size)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        for i in range(blocks):
            self.enc[f"8x8_block{i}"] = Block(size, first=i == 0)
            self.dec[f"8x8_in{i}"] = Block(size)
        self.register_buffer("freqs", torch.randn(3, 4).t()[1:])
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 5))
        self.scale = nn.Parameter(torch.randn(3).half(), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.none = None
        self.register_module("absent", None)


class Precond(Persistent):
    def __init__(self, size=4, blocks=2):
        super().__init__(img_resolution=8, channel_mult=(1, 2), model_type="Net", use_fp16=False,
                         nothing=None, odd=torch.float32.itemsize, endless=math.inf,
                         inner={"scale": np.float64(0.25), "of": [1, [2]]})  # fmt: skip
        self.sigma_data = 0.5
        self.sigma_max = float("inf")
        self.label_dim = 0
        self.model = Net(size, blocks)


def nvlabs(path, ema=None, protocol=4, **more):
    with persistence():
        content = {"ema": Precond() if ema is None else ema, "loss_fn": Persistent(),
                   "augment_pipe": None, "dataset_kwargs": {"path": "x"}, **more}  # fmt: skip
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def pickled(thing, protocol=4):
    with persistence():
        return pickle.dumps(thing, protocol=protocol)


def bits(tensor):
    plain = tensor.detach().contiguous()
    data = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tensor.shape, data


def equal(have, want):
    assert list(have) == list(want)
    for name, tensor in want.items():
        assert bits(have[name]) == bits(tensor), name


# ---- by opcodes


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def put(path, content):
    path.write_bytes(content)
    return path


def storage_head(thing, protocol=2):
    """The head of a nested ``torch.save`` in the older format, with anything for the storage."""
    metadata = {"protocol_version": 1001, "little_endian": True,
             "type_sizes": {"short": 2, "int": 4, "long": 4}}  # fmt: skip
    parts = [torch.serialization.MAGIC_NUMBER, 1001, metadata, thing]
    return b"".join(pickle.dumps(part, protocol) for part in parts)


def claim(numel, kind="torch FloatStorage", place="cpu"):
    module, name = kind.split()
    return (b"\x80\x02(" + text("storage") + f"c{module}\n{name}\n".encode() + text("0")
            + text(place) + b"\x8a\x08" + struct.pack("<q", numel) + b"NtQ.")  # fmt: skip


def nested(payload):
    return pickle.dumps({"ema": Call(torch.storage._load_from_bytes, payload)})


def typed(tensor):
    return torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )


def state_archive(path, pickle_bytes, **entries):
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("net/data.pkl", pickle_bytes)
        for name, content in entries.items():
            made.writestr(f"net/{name}", content)
    return path


def old_tensor(key, *size):
    """The opcodes of a tensor as torch wrote it in 2017, alone in its storage."""
    numel = math.prod(size)
    stride = [math.prod(size[i + 1 :]) for i in range(len(size))]
    storage = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
               + b"J" + struct.pack("<i", numel) + b"NtQ")  # fmt: skip
    sizes = b"".join(
        b"(" + b"".join(b"K" + bytes([n]) for n in one) + b"t" for one in (size, stride)
    )
    return b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00" + sizes + b"tR"


HOOKS = b"ccollections\nOrderedDict\n)R"
OLD = {  # how an entry of a state dict was written
    "a tensor": old_tensor,
    "a parameter of state": lambda *of: (
        b"ctorch.nn.parameter\nParameter\n)\x81(" + old_tensor(*of) + b"N" + HOOKS + b"\x88\x89tb"
    ),
    "a parameter of data": lambda *of: (
        b"ctorch.nn.parameter\nParameter\n"
        + old_tensor(*of)
        + b"\x85\x81(\x88\x89"
        + HOOKS
        + b"tb"
    ),
}
