"""The table of methods, from that of ``rfpp methods``."""

from __future__ import annotations

from pipeline.cli.methods import METHODS


def address(paper: str) -> str:
    """Where a paper is found."""
    source, _, name = paper.partition(":")
    known = {"arXiv": "https://arxiv.org/abs/", "OpenReview": "https://openreview.net/forum?id="}
    return known[source] + name


def page() -> str:
    """As Markdown."""
    lines = [
        "# Methods",
        "",
        "Each is rows of `params.yaml`, and none is a stage of its own; `rfpp methods` prints "
        "this table.",
        "",
        "| system | what is implemented | rows | not claimed |",
        "|---|---|---|---|",
    ]
    for method in METHODS:
        system = f"[{method.system}]({method.page}.md) "
        system += f"([{method.paper}]({address(method.paper)}))"
        lines.append(f"| {system} | {method.does} | {method.rows} | {method.not_claimed} |")
    return "\n".join(lines) + "\n"
