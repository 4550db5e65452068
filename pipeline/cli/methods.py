"""``rfpp methods``: the systems that rows can express, and what shows that they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer


class Method(NamedTuple):
    """A system of the literature as rows of ``params.yaml``.

    Attributes:
        system: its name.
        paper: arXiv number.
        page: its page in docs/methods, without ``.md``.
        does: what is implemented.
        rows: options and presets that run it.
        tests: files that prove it, below ``tests/``.
        not_claimed: what a reader might expect and is not there, or not shown.
    """

    system: str
    paper: str
    page: str
    does: str
    rows: str
    tests: tuple[str, ...]
    not_claimed: str


METHODS = (
    Method(
        "RF++", "2405.20320", "rfpp",
        "2-RF with U-shaped times, pseudo-Huber and LPIPS losses, EDM teachers, inverted real "
        "images, anchored sampler; a share of times at t = 1 is ours",
        "recipes: times, loss; preset: digits, cifar10, afhq64, ffhq64, imagenet64",
        ("unit/training/test_times.py", "unit/training/test_losses.py",
         "unit/interop/test_foreign.py"),
        "the published FIDs: the presets have not been run to the end with this code",
    ),
)  # fmt: skip


def methods(
    tests: Annotated[bool, typer.Option("--tests", help="Name the tests, too.")] = False,
) -> None:
    """Lists the systems that rows of params.yaml can express."""
    print("\n\n".join("\n".join(_lines(method, tests)) for method in METHODS))


def _lines(method: Method, tests: bool) -> Iterator[str]:
    yield f"{method.system} (arXiv:{method.paper})"
    yield f"  does         {method.does}"
    yield f"  rows         {method.rows}"
    yield f"  not claimed  {method.not_claimed}"
    yield f"  page         docs/methods/{method.page}.md"
    if tests:
        yield f"  tests        {', '.join(f'tests/{name}' for name in method.tests)}"
