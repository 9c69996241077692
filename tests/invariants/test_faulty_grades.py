"""A run whose grader fails on one sample in twenty goes on learning, and counts every failure by its kind."""

import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from rft.job import load_job
from rft.training.start import train
from tests.jobs import write_job
from tests.tiny import save_tiny_model

RUNTIME = "python_grader_runtime_error"
SOURCE = """
import os, time, zlib

def grade(sample, item):
    text = sample["output_text"]
    chance = zlib.crc32((item["messages"][0]["content"] + text).encode())
    if chance % 20 == 0:
        return fail(chance // 20 % 5)
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))

def fail(kind):
    if kind == 0:
        raise ValueError("not this one \\ud800")
    if kind == 1:
        time.sleep(1000)
    if kind == 2:
        return len("x" * 2 ** 40)
    if kind == 3:
        os._exit(1)
    return float("nan")
"""
WORDS = (
    "ValueError: not this one",
    "timeout after 0.4 s",
    "memory limit 512 MB",
    "exit code 1 before it returned",
    "grade returned nan",
)
REWARDS = (0.0, None, None, 0.0, 0.0)
"""What each kind of failure earns."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    job_file = write_job(folder / "job", save_tiny_model(folder / "model"))
    document = yaml.safe_load(job_file.read_text())
    document["method"]["reinforcement"]["grader"]["source"] = SOURCE
    document["engine"]["rollout"]["group_size"] = 8
    limits = {"timeout_seconds": 0.4, "memory_mb": 512}
    document["engine"]["grading"] = {"python": limits}
    job_file.write_text(yaml.safe_dump(document))
    job = load_job(job_file, ())
    run_folder = folder / "run"
    outcome = train(job, job_text=job_file.read_text(), run_folder=run_folder, resume=False)
    assert outcome.status == "succeeded"
    return run_folder


def rollouts(run: Path, part: str, step: int) -> list[dict[str, Any]]:
    path = run / part / f"step_{step}.parquet"
    return pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []


def kind_of(rollout: dict[str, Any]) -> int | None:
    """How the grader fails on it, or None."""
    content = json.loads(rollout["item"])["messages"][0]["content"]
    chance = zlib.crc32((content + rollout["output_text"]).encode())
    return chance // 20 % 5 if chance % 20 == 0 else None


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns(run: Path) -> None:
    rows = metrics(run)
    assert len(rows) == 9
    assert rows[-1]["valid_reward_mean"] > rows[0]["valid_reward_mean"] + 0.05
    assert all(row["optimizer/update_norm"] > 0 for row in rows[1:])


def test_every_failure_has_its_reward_and_its_words(run: Path) -> None:
    seen = set()
    for part in ("samples", "evaluations"):
        for step in range(9):
            for rollout in rollouts(run, part, step):
                kind = kind_of(rollout)
                errors = json.loads(rollout["errors"]) if rollout["errors"] else {}
                if kind is None:
                    assert not errors, rollout
                    continue
                seen.add(kind)
                assert rollout["reward"] == REWARDS[kind], rollout
                assert WORDS[kind] in errors["letters"][RUNTIME]
    assert len(seen) == 5


def test_failures_are_counted(run: Path) -> None:
    total = 0
    for row in metrics(run):
        kinds = [kind_of(rollout) for rollout in rollouts(run, "samples", row["step"])]
        num_failed = sum(kind is not None for kind in kinds)
        num_ungraded = sum(kind in (1, 2) for kind in kinds)
        assert row.get(f"errors/train_{RUNTIME}_count", 0) == num_failed
        if kinds:
            assert row["mean_unresponsive_rewards"] == pytest.approx(num_ungraded / len(kinds))
        total += num_failed
    assert total > 8
