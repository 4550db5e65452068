"""Stage ``report``: metrics, curves, samples and provenance -> report/index.html."""

from __future__ import annotations

from pipeline import artifacts, console
from pipeline.report import page
from rfpp_core.config import params


def run() -> None:
    page.write(params.load())
    print(f"report: open {artifacts.REPORT / 'index.html'}")


if __name__ == "__main__":
    console.main(run)
