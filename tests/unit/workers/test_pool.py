"""The worker pool: pinned devices, workers that die or hang, parents that die."""

import os
import platform
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pipeline.workers import pool as pools
from pipeline.workers.pool import Closed, ProcessPool, WorkerDied
from rfpp_core.errors import UserError


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_workers_by_environment(monkeypatch):
    assert pools.devices() == ["cpu"]
    monkeypatch.setenv("RFPP_WORKERS", "3")
    assert pools.devices() == ["cpu"] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pools.devices() == ["cuda:0", "cuda:1"]
    monkeypatch.setenv("RFPP_DEVICES", "cuda:1, cpu")
    assert pools.devices() == ["cuda:1", "cpu"]
    for wrong in ("gpu", "cuda", "cuda:2", "cuda:²", "cuda:" + "9" * 5000):
        monkeypatch.setenv("RFPP_DEVICES", wrong)
        with pytest.raises(UserError, match=f"RFPP_DEVICES has '{wrong[:80]}"):
            pools.devices()
    monkeypatch.setenv("RFPP_DEVICES", "cpu")
    for wrong in ("0", "-1", "two", "²"):
        monkeypatch.setenv("RFPP_WORKERS", wrong)
        with pytest.raises(UserError, match="RFPP_WORKERS"):
            pools.devices()


@pytest.fixture
def pool():
    pool = ProcessPool(["cpu"])
    yield pool
    pool.close(kill=True)


def test_a_worker_stays_and_replaces_itself(pool):
    pid = pool.call("os:getpid")
    assert pool.call("os:getpid") == pid != os.getpid()
    with pytest.raises(ZeroDivisionError):
        pool.call("operator:truediv", 1, 0)
    assert pool.call("os:getpid") == pid  # an exception is not a death
    with pytest.raises(WorkerDied, match="killed"):
        pool.call("os:kill", pid, signal.SIGKILL)
    assert pool.call("os:getpid") != pid
    with pytest.raises(WorkerDied, match=r"took over 0.5 s"):
        pool.call("time:sleep", 30, timeout=0.5)
    assert pool.call("operator:add", 1, 2) == 3
    pool.close(kill=True)
    with pytest.raises(Closed):
        pool.call("os:getpid")


def test_a_worker_never_imports_prefect_and_ignores_ctrl_c(pool):
    modules = pool.call("builtins:eval", "'prefect' in __import__('sys').modules")
    assert modules is False
    pid = pool.call("os:getpid")
    os.kill(pid, signal.SIGINT)
    assert pool.call("os:getpid") == pid


@pytest.mark.parametrize(("visible", "pinned"), [(None, "1"), ("4, GPU-abc ", "GPU-abc")])
def test_devices_are_pinned_before_torch(monkeypatch, visible, pinned):
    """What the parent may see is respected: a batch system hands out some of the GPUs."""
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = ProcessPool(["cuda:1"])
    try:
        assert pool.call("os:getenv", "CUDA_VISIBLE_DEVICES") == pinned
        assert pool.call("builtins:eval", "'torch' in __import__('sys').modules") is False
    finally:
        pool.close(kill=True)


def test_a_wrong_device_is_one_line(monkeypatch):
    from rfpp_core import runtime

    for wrong in ("gpu0", "cuda:7", "meta"):
        monkeypatch.setenv("RFPP_DEVICE", wrong)
        with pytest.raises(UserError, match=f"RFPP_DEVICE is '{wrong}'"):
            runtime.device()


def test_workers_leave_with_their_parent():
    code = (
        "from pipeline.workers.pool import ProcessPool; import time\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(['cpu']); print(pool.call('os:getpid'), flush=True)\n"
        "    time.sleep(60)\n"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    worker = int(script.stdout.readline())
    assert alive(worker)
    script.kill()
    script.wait()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)


def test_the_entry_of_generate_is_light():
    """Spawned workers import it again before their device is pinned."""
    code = "import sys, pipeline.stages.generate; print({'torch', 'prefect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_dask_cluster_behind_the_same_call():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        pool = pools.DaskPool(cluster.scheduler_address)
        assert pool.size == 1
        assert pool.call("operator:add", 1, 2) == 3
        assert pool.call("os:getpid") != os.getpid()
        with pytest.raises(ZeroDivisionError):
            pool.call("operator:truediv", 1, 0)
        with pytest.raises(WorkerDied, match=r"took over 0.1 s"):
            pool.call("time:sleep", 5, timeout=0.1)
        pool.close()


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_wait_passively_unless_the_user_says(given):
    """In every process, before torch: waiting threads that spin take the time of the others."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    code = (
        "import os, sys, pipeline\n"
        "from pipeline.workers.pool import ProcessPool\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(['cpu'])\n"
        "    print(os.environ['OMP_WAIT_POLICY'], pool.call('os:getenv', 'OMP_WAIT_POLICY'),"
        " 'torch' in sys.modules)\n"
        "    pool.close(kill=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    expected = given or "passive"
    assert done.stdout == f"{expected} {expected} False\n", done.stderr


FREES = """
import resource, sys
import numpy as np
{imported}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(12):
    if step == 2:
        before = faults()
    kept = [np.full(3 << 20, 1.0, np.float32) for _ in range(4)]  # 48 MB in all
    del kept
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other memory allocators do as well")
@pytest.mark.parametrize(
    ("imported", "given", "clears"),
    [("import pipeline", {}, False), ("", {}, True),
     ("import pipeline", {"MALLOC_TRIM_THRESHOLD_": "100000"}, True)],
)  # fmt: skip
def test_freed_memory_is_kept_for_the_next_operator(imported, given, clears):
    """Unless the user says: otherwise the kernel clears thousands of pages a step."""
    # Dask's nanny, in tests before, leaves a MALLOC_TRIM_THRESHOLD_ of its own
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FREES.format(imported=imported)],
                          env=env | given, capture_output=True, text=True)  # fmt: skip
    assert (int(done.stdout) > 5000) is clears, done.stderr


def test_a_dask_worker_of_other_code_is_refused(monkeypatch):
    """One that was there is named at once, one that joins later by the call it gets."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        pool = pools.DaskPool(cluster.scheduler_address)
        pool.code = "code 0123 and torch 1.0"
        with pytest.raises(
            UserError, match=r"has code .*, the driver code 0123 and torch 1\.0; gi"
        ):
            pool.call("operator:add", 1, 2)
        pool.close()
        monkeypatch.setattr(pools, "code_signature", lambda: "code 0123 and torch 1.0")
        with pytest.raises(UserError, match=r"RFPP_DASK: the worker on .* has code"):
            pools.DaskPool(cluster.scheduler_address)


def test_a_dask_scheduler_that_is_gone_is_not_waited_for(monkeypatch):
    """As Dask 2026.8 leaves a killed scheduler: the call is never done, the client reconnects."""
    monkeypatch.setattr(pools, "POLL_SECONDS", 0.01)

    class Pending:
        def result(self, timeout):
            raise TimeoutError

        def done(self):
            return False

    pool = object.__new__(pools.DaskPool)
    pool.code = ""
    pool.client = SimpleNamespace(status="connecting", submit=lambda *_, **__: Pending())
    with pytest.raises(UserError, match=r"the scheduler is gone \(connecting\); finished shards"):
        pool.call("operator:add", 1, 2)
