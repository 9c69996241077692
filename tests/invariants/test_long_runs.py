"""A long run takes no more memory, descriptors or files than a short one, beyond the bounds that it states."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rft.runs.layout import RunFolder
from rft.runs.reader import Run
from rft.runs.writer import MAX_EVALUATION_FILES, MAX_SAMPLES_FILES
from tests.killing import write_moving_job
from tests.launch import ROOT

HYPERPARAMETERS = "method.reinforcement.hyperparameters"

ONE_ARENA = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""With one heap for all threads, what grows is what is held and not how it is spread out."""

MAX_GROWTH_BYTES = 16e6
"""Of a thousand steps, from step 400 on: grades are kept for reuse until there are 10,000, here at step 600, and
Python's own table of names grows once, by 4 MB."""


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_thousand_steps(tmp_path: Path) -> None:
    job = write_moving_job(tmp_path / "job", num_rows=400)
    folder = tmp_path / "run"
    arguments = [
        "train", str(job), f"{HYPERPARAMETERS}.n_epochs=10", f"{HYPERPARAMETERS}.eval_interval=8",
        "--run-dir", str(folder),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "rft", *arguments],
            env={**os.environ, **ONE_ARENA, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    seen: dict[int, tuple[int, int, int]] = {}
    while command.poll() is None:
        step = Run(RunFolder(folder)).status().step
        if step and step % 10 == 0 and step not in seen and command.poll() is None:
            seen[step] = measure(command.pid, folder)
        time.sleep(0.05)
    assert command.wait() == 0, (tmp_path / "log").read_text()[-2000:]
    steps = np.array([step for step in seen if step >= 400])
    memory, descriptors, files = (np.array([seen[s][i] for s in steps]) for i in range(3))
    slope = np.polyfit(steps, memory, 1)[0]
    print(
        f"{len(steps)} looks: {slope * 1000 / 1e6:.1f} MB per 1,000 steps, "
        f"descriptors {descriptors.min()}–{descriptors.max()}, at most {files.max()} files"
    )
    assert slope * 1000 < MAX_GROWTH_BYTES
    assert descriptors.max() - descriptors.min() <= 4
    fixed = 100  # job, events, states, checkpoints and what is on its way
    assert files.max() <= MAX_SAMPLES_FILES + MAX_EVALUATION_FILES + fixed
    names = [len(list((folder / kind).iterdir())) for kind in ("samples", "evaluations")]
    assert names == [MAX_SAMPLES_FILES, MAX_EVALUATION_FILES]


def measure(pid: int, folder: Path) -> tuple[int, int, int]:
    """Resident bytes and descriptors of the process, files of its run."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    num_descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 4096 * pages, num_descriptors, sum(len(names) for _, _, names in os.walk(folder))
