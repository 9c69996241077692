"""The built-in 135M model on the real command line: reward rises, three checkpoints, a whole record."""

import json
import math
from pathlib import Path

import pytest

from rft.runs.reader import open_run
from tests.launch import ROOT, run_rft

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    job = ROOT / "configs/smoke/job.yaml"
    done = run_rft("train", str(job), "--run-dir", str(folder / "run"), cwd=folder, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "run"


def test_the_reward_visibly_rises(smoke_run: Path) -> None:
    rows = open_run(str(smoke_run), smoke_run.parent).metrics()
    rewards = [row["valid_reward_mean"] for row in rows if "valid_reward_mean" in row]
    assert len(rewards) == 5
    assert rewards[-1] > rewards[0] + 0.1


def test_three_checkpoints_with_a_best_one_stay(smoke_run: Path) -> None:
    run = open_run(str(smoke_run), smoke_run.parent)
    best = run.best_checkpoint()
    assert run.status().status == "succeeded"
    assert len(run.checkpoints()) == 3 and best is not None
    assert best.valid_reward_mean == max(c.valid_reward_mean for c in run.checkpoints())


def test_the_record_is_whole(smoke_run: Path) -> None:
    run = open_run(str(smoke_run), smoke_run.parent)
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(9))
    assert all(math.isfinite(row["train_reward_mean"]) for row in rows[1:])
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in rows[1:])
    metrics = [event["data"] for event in run.events() if event["type"] == "metrics"]
    assert [data["step"] for data in metrics] == list(range(9))
    assert metrics[2]["scores"]["graders"][0]["name"] == "brevity"
    for step in (0, 2, 4, 6, 8):
        evaluation = run.evaluation(step)
        assert {row["row"] for row in evaluation} == set(range(len(evaluation)))
    assert len(run.samples(1)) == 16
    environment = json.loads((smoke_run / "env.json").read_text())
    assert environment["bitwise"] is True and environment["world_size"] == 1
