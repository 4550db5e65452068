"""``make faults ROUNDS=200``: stages under attack at random instants, from a seeded schedule.

Each round copies the finished reference to before a stage, attacks it, resumes, and compares with
the uninterrupted run: 0 lost, 0 twice, 0 differences, 0 orphans.  Rounds are logged, so a run of
the same seed resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.workers.launch import die_with_parent, free_port
from tests.faults.kinds import KINDS
from tests.faults.scene import Failure, Scene, code_digest, reference
from tests.helpers import Project

PRIVATE = 4  # every so many of the rounds that start a Prefect server at all has its own


class Round(NamedTuple):
    kind: str
    stage: str
    seed: int
    private: bool  # a Prefect server of its own, which takes seconds to start


def schedule(rounds: int, seed: int) -> list[Round]:
    """Every kind in turn, shuffled, each on one of its stages."""
    rng, plan, serving = random.Random(seed), list[Round](), 0
    while len(plan) < rounds:
        for kind in rng.sample(list(KINDS), len(KINDS)):
            stage = rng.choice(KINDS[kind][1])
            serving += stage == "generate@pairs2"
            private = stage == "generate@pairs2" and serving % PRIVATE == 0
            plan.append(Round(kind, stage, rng.getrandbits(32), private))
    return plan[:rounds]


def shared_server(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """One Prefect server for most rounds, which takes seconds to start."""
    env = {**os.environ, "PREFECT_HOME": str(home / "prefect"), "PREFECT_UI_ENABLED": "false",
           "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # fmt: skip
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    port = str(free_port())
    server = subprocess.Popen(
        [sys.executable, *command, "--port", port, "--log-level", "error"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    return server, f"http://127.0.0.1:{port}/api"


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the shared Prefect server did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "rfpp-faults")
    parser.add_argument("--only", help="kinds that contain this text")
    given = parser.parse_args()
    home: Path = given.home
    home.mkdir(parents=True, exist_ok=True)
    code = code_digest()
    log = home / f"rounds-{given.rounds}-{given.seed}-{code}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print(f"faults: {given.rounds} rounds, seed {given.seed}, {len(done)} done before", flush=True)
    server, url = shared_server(home)
    try:
        truth = reference(home, code)
        wait_for(url)
        plan, over = schedule(given.rounds, given.seed), {row["round"] for row in done}
        for i, planned in enumerate(plan):
            if i in over or (given.only and given.only not in planned.kind):
                continue
            began = time.monotonic()
            row = {"round": i, **tried(planned, home, truth, url)}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
            said = row["failure"] or ("held" if row["struck"] else "held, came too late")
            print(f"{i + 1}/{given.rounds} {planned.kind}, {planned.stage}: {said} "
                  f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
    finally:
        server.terminate()
    print(table(done))
    return int(any(row["failure"] for row in done))


def tried(planned: Round, home: Path, truth: Project, url: str) -> dict[str, Any]:
    """What came of a round."""
    rng = random.Random(planned.seed)
    env = {} if planned.private else {"PREFECT_API_URL": url}
    scene = Scene(home, truth, planned.stage, {**env, "RFPP_WORKERS": str(rng.randint(1, 2))})
    failure = ""
    try:
        KINDS[planned.kind][0](scene, rng)
    except Exception as error:  # whatever breaks a round is a failure until it is understood
        last = traceback.extract_tb(error.__traceback__)[-1]
        known = isinstance(error, Failure)
        where = "" if known else f" ({Path(last.filename).name}:{last.lineno})"
        failure = f"{type(error).__name__}: {error}{where}"
        scene.clear()
    return {**planned._asdict(), "struck": scene.struck, **scene.notes, "failure": failure}


def table(rows: list[dict[str, Any]]) -> str:
    """How often each kind was tried and struck in time, on which stages, and its failures."""
    lines = ["| attack | on | rounds | struck | failures |", "|---|---|---|---|---|"]
    for kind in KINDS:
        those = [row for row in rows if row["kind"] == kind]
        stages = ", ".join(sorted({row["stage"] for row in those}))
        lines.append(f"| {kind} | {stages} | {_counts(those)} |")
    private = sum(row["private"] for row in rows)
    lines.append(f"| all ({private} with a private server) | | {_counts(rows)} |")
    return "\n".join(lines)


def _counts(rows: list[dict[str, Any]]) -> str:
    struck, failed = (sum(bool(row[name]) for row in rows) for name in ("struck", "failure"))
    return f"{len(rows)} | {struck} | {failed}"


if __name__ == "__main__":
    sys.exit(main())
