"""``make faults ROUNDS=200``: stages under attack at random instants, from a seeded schedule.

Each round copies the finished reference to before a stage, attacks it, resumes, and compares with
the uninterrupted run: 0 lost, 0 twice, 0 differences, 0 orphans.  Rounds are logged, so a run of
the same seed goes on where it was stopped.
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
import urllib.request
from collections import Counter
from pathlib import Path

from tests.faults.attacks import KINDS
from tests.faults.scene import Lapse, Scene, reference


def schedule(rounds: int, seed: int) -> list[tuple[str, str, int]]:
    """(kind, stage, seed) of each round: every kind in turn, shuffled."""
    rng, plan = random.Random(seed), []
    while len(plan) < rounds:
        kinds = list(KINDS)
        rng.shuffle(kinds)
        plan += [(kind, rng.choice(KINDS[kind][1]), rng.getrandbits(32)) for kind in kinds]
    return plan[:rounds]


def shared_server(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """One Prefect server for most rounds; a private one takes seconds to start."""
    env = {**os.environ, "PREFECT_HOME": str(home / "prefect"), "PREFECT_UI_ENABLED": "false",
           "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}  # fmt: skip
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    port = "47113"
    server = subprocess.Popen(
        [sys.executable, *command, "--port", port, "--log-level", "error"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
            return server, url
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
    log = home / f"rounds-{given.rounds}-{given.seed}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print(f"faults: {given.rounds} rounds, seed {given.seed}, {len(done)} done before", flush=True)
    truth = reference(home)
    server, url = shared_server(home)
    try:
        plan, over = schedule(given.rounds, given.seed), {row["round"] for row in done}
        for i, (kind, stage, seed) in enumerate(plan):
            if i in over or (given.only and given.only not in kind):
                continue
            env = {} if i % 8 == 0 else {"PREFECT_API_URL": url}  # every eighth: a private one
            began, lapse = time.monotonic(), ""
            try:
                KINDS[kind][0](Scene(home, truth, stage, env), random.Random(seed))
            except (Lapse, subprocess.TimeoutExpired) as error:
                lapse = f"{type(error).__name__}: {error}"
            row = {"round": i, "kind": kind, "stage": stage, "private": not env, "lapse": lapse}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
            said = lapse or f"held ({time.monotonic() - began:.0f} s)"
            print(f"{i + 1}/{given.rounds} {kind}, {stage}: {said}", flush=True)
    finally:
        server.terminate()
    print(table(done))
    return int(any(row["lapse"] for row in done))


def table(rows: list[dict]) -> str:
    """How often each kind was tried, on which stages, and how often it found a lapse."""
    tried, lapsed = (
        Counter(r["kind"] for r in rows),
        Counter(r["kind"] for r in rows if r["lapse"]),
    )
    lines = ["| attack | rounds | stages | lapses |", "|---|---|---|---|"]
    for kind in KINDS:
        stages = ", ".join(sorted({r["stage"] for r in rows if r["kind"] == kind}))
        lines.append(f"| {kind} | {tried[kind]} | {stages} | {lapsed[kind]} |")
    private = sum(r["private"] for r in rows)
    lines.append(f"| all ({private} with a private server) | {len(rows)} | | {lapsed.total()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
