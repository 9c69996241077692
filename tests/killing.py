"""Jobs run in processes that can be killed at any moment: forked from one that has loaded everything.

A child is a real `rft` command in a process of its own; that it need not import torch again is what lets
a test kill dozens of them.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rft.job import ModelSettings
from rft.models import find_model, load_model
from rft.policy import LoraShape, new_policy
from rft.runs.layout import RunFolder, steps_in
from rft.training.states import StateStore
from tests.jobs import write_job
from tests.tiny import save_tiny_model

PRELOADED = ["rft.cli.main", "rft.training.start", "peft", "pyarrow.parquet"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Negative: the signal that ended it."""
    output: str
    seconds: float


class Command:
    """An `rft` command in a forked process, perhaps as one rank of several."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ):
        self._log = log
        self._began = time.monotonic()
        context = multiprocessing.get_context("forkserver")
        with one_thread():
            context.set_forkserver_preload(PRELOADED)
            self._process = context.Process(
                target=_run, args=(list(arguments), str(log), dict(environment or {}))
            )
            self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def send(self, number: int) -> None:
        """Deliver a signal, if the process is still there."""
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, number)

    def wait(self, timeout: float = 120) -> Ended:
        """Until it has ended; a process that does not is killed, and AssertionError raised."""
        self._process.join(timeout)
        output = self._log.read_text(errors="replace") if self._log.exists() else ""
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {timeout} s\n{output[-3000:]}")
        return Ended(self._process.exitcode, output, time.monotonic() - self._began)

    def kill_after(self, seconds: float) -> Ended:
        """`kill -9` after so long, unless it has ended by then."""
        self._process.join(seconds)
        self.send(signal.SIGKILL)
        return self.wait()


def run(arguments: Sequence[str], log: Path, failpoint: str | None = None) -> Ended:
    """A command to its end."""
    return Command(arguments, log, {"RFT_FAILPOINT": failpoint} if failpoint else {}).wait()


def ranks_of(arguments: Sequence[str], log: Path, num_ranks: int, port: int) -> list[Command]:
    """The same command as real ranks over gloo, as a launcher would start them."""
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    return [
        Command(
            arguments,
            log.with_name(f"{log.name}.{rank}"),
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]


@contextmanager
def one_thread() -> Any:
    """Forking a process whose OpenMP has threads would leave the child without them."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """In the child."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.pop("RFT_FAILPOINT", None)
    os.environ.update(environment, OMP_NUM_THREADS="1", NO_COLOR="1")
    torch.set_num_threads(1)
    from rft.cli.main import main

    sys.exit(main(arguments))


def write_moving_job(folder: Path, num_rows: int = 32) -> Path:
    """A job that goes on from an adapter whose B is not zero, so that an ignored adapter shows."""
    source = find_model(str(save_tiny_model(folder / "model")), runs_folder=folder)
    base = load_model(source, ModelSettings(), "float32", "cpu")
    policy = new_policy(base, LoraShape(4, 8), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    policy.save_adapter(folder / "adapter")
    return write_job(folder, folder / "adapter", num_rows)


def traces(folder: Path) -> dict[str, Any]:
    """All that two runs of one job must have in common: everything but times and the story in events."""
    run_folder = RunFolder(folder)
    found: dict[str, Any] = {"metrics": timeless(run_folder.metrics)}
    for kind in ("states", "checkpoints"):
        for path in sorted((folder / kind).rglob("*.safetensors")):
            found[str(path.relative_to(folder))] = path.read_bytes()
    for kind in ("samples", "evaluations"):
        for path in sorted((folder / kind).iterdir()):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def timeless(path: Path) -> list[str]:
    """The lines of metrics.jsonl without times, byte for byte otherwise."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [json.dumps({k: v for k, v in r.items() if not k.startswith("timing/")}) for r in rows]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two runs differ; for the metrics, line, key and both values."""
    found = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    for mine, theirs in zip(one["metrics"], other["metrics"], strict=False):
        rows = json.loads(mine), json.loads(theirs)
        found += [
            f"step {rows[0]['step']} {key}: {rows[0].get(key)} and {rows[1].get(key)}"
            for key in rows[0].keys() | rows[1].keys()
            if rows[0].get(key) != rows[1].get(key)
        ]
    return sorted(found)


def assert_readable(folder: Path) -> int:
    """Every state that a killed run left is whole or no state; gives the steps that must be done again."""
    run_folder = RunFolder(folder)
    lines = run_folder.metrics.read_text().splitlines() if run_folder.metrics.exists() else []
    whole = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    if not steps_in(run_folder.states):
        assert max(whole, default=0) == 0
        return 0
    state, faults = StateStore(run_folder).newest()
    assert state is not None
    assert [fault for fault in faults if "is damaged" in fault] == []
    return max(whole, default=0) - state.progress.step
