"""Starts real processes: the command line, and groups of ranks on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_rft(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`rft …` as a person starts it."""
    return _run([sys.executable, "-m", "rft", *arguments], cwd, timeout)


def run_ranks(
    num_ranks: int, module: str, *arguments: str, cwd: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`python -m module …` on `num_ranks` real ranks; `--multi_gpu` is what makes them real on a CPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    launch += [
        "--num_processes",
        str(num_ranks),
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    if num_ranks > 1:
        launch += ["--multi_gpu"]
    return _run([*launch, "-m", module, *arguments], cwd, timeout, num_threads="1")


def _run(
    command: list[str], cwd: Path, timeout: float, num_threads: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": num_threads or os.environ["OMP_NUM_THREADS"],
        "NO_COLOR": "1",
    }
    return subprocess.run(
        command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True
    )
