"""YAML 1.2 as DVC reads it, so that a file says the same to both.

PyYAML follows YAML 1.1, where ``010`` is 8, ``1:30`` is 90, ``yes`` is true and ``1e-3`` is a
string; and of a key given twice it silently takes the last.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from rfpp_core.errors import UserError

MOST = 2**20  # bytes of a file; the largest preset has 4,000
SCALARS = {  # what a tag's plain scalars look like, and their first characters
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
              r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    "null": ("|~|null|Null|NULL", ("", *"~nN")),
    "merge": ("<<", "<"),
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16, "0b": 2}.get(text[:2], 10))


for _tag, (_pattern, _first) in SCALARS.items():  # ints before floats, which look like them, too
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first)
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def read(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it cannot be read, is too large, or is not YAML.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        text = path.read_bytes()
        if len(text) > MOST:
            raise UserError(f"{path} has {len(text)} bytes; at most {MOST} are read")
        return yaml.load(text.decode("utf-8-sig"), _Loader)  # a SafeLoader
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is not YAML that can be read: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:400]}") from None
