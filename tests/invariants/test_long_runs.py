"""A long run takes no more memory, descriptors or files than a short one, beyond the bounds that it states."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from rft.runs.layout import RunFolder
from rft.runs.reader import Run
from rft.runs.writer import MAX_EVALUATION_FILES, MAX_SAMPLES_FILES
from tests.killing import Command, write_moving_job

HYPERPARAMETERS = "method.reinforcement.hyperparameters"

MAX_GROWTH_BYTES = 24e6
"""Of a thousand steps, from step 400 on: 16,000 grades kept for reuse are about 12 MB of it."""


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_thousand_steps(tmp_path: Path) -> None:
    job = write_moving_job(tmp_path / "job", num_rows=400)
    folder = tmp_path / "run"
    command = Command(
        [
            "train", str(job), f"{HYPERPARAMETERS}.n_epochs=10", f"{HYPERPARAMETERS}.eval_interval=8",
            "--run-dir", str(folder),
        ],
        tmp_path / "log",
    )  # fmt: skip
    seen: dict[int, tuple[int, int, int]] = {}
    while command.is_running:
        step = Run(RunFolder(folder)).status().step
        if step and step % 10 == 0 and step not in seen and command.is_running:
            seen[step] = measure(command.pid, folder)
        time.sleep(0.05)
    ended = command.wait()
    assert ended.code == 0, ended.output[-2000:]
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
