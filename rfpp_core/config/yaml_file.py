"""YAML 1.2 by DVC's own reader, so that DVC and the stages read the same values.

PyYAML follows YAML 1.1, where ``010`` is 8, ``1:30`` is 90, ``yes`` is true and ``1e-3`` is a
string; and of a key given twice it silently takes the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfpp_core.errors import UserError, quoted

MOST = 2**20  # bytes of a file; the largest preset has some 4,000


def read(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it cannot be read, is too large, or is not YAML.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            text = file.read(MOST + 1)
        if len(text) > MOST:
            raise UserError(f"{path} has {path.stat().st_size} bytes; at most {MOST} are read")
        return parse(text.decode("utf-8-sig"), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8
        raise UserError(f"{path} is not YAML: {quoted(' '.join(str(error).split()))}") from None


def parse(text: str, where: str) -> Any:
    """What a YAML document says.

    Raises:
        UserError: if it is not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise UserError(f"{where} is not YAML that can be read: it is nested too deeply") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"{where} is not YAML: {quoted(error.problem)}{at}") from None
    except (YAMLError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{where} is not YAML: {quoted(' '.join(str(error).split()))}") from None
