"""The golden run: a change that should not alter numbers leaves `golden.json` as it is.

`python -m tests.invariants.test_golden` writes it anew; that deserves a sentence in the changelog.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rft.job import load_job
from rft.runs.reader import open_run
from rft.training.start import train
from tests.jobs import write_job
from tests.tiny import save_tiny_model

GOLDEN = Path(__file__).with_name("golden.json")
KEYS = (
    "train_reward_mean",
    "valid_reward_mean",
    "completion_tokens_mean",
    "policy/entropy",
    "optimizer/gradient_norm",
    "optimizer/update_norm",
)


def trajectory(folder: Path) -> list[dict[str, Any]]:
    job_file = write_job(folder / "job", save_tiny_model(folder / "model"))
    job = load_job(job_file, ["seed=3"])
    train(job, job_text=job_file.read_text(), run_folder=folder / "run", resume=False)
    rows = open_run(str(folder / "run"), folder).metrics()
    return [{key: row[key] for key in ("step", *KEYS) if key in row} for row in rows]


def test_the_trajectory_is_the_golden_one(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    found = trajectory(tmp_path)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == {key: pytest.approx(value, rel=1e-3) for key, value in theirs.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(trajectory(Path(scratch)), indent=1) + "\n")
