"""Invariant 8: two real ranks compute what one computes."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from rft.runs.reader import Run, open_run
from tests.jobs import write_job
from tests.launch import run_ranks
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def worked(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Facts and tensors of the same work done by one rank and by two."""
    found = {}
    for size in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        done = run_ranks(size, "tests.invariants.gradient_worker", str(folder), cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        facts = json.loads((folder / "facts.json").read_text())
        found[size] = (facts, load_file(folder / "tensors.safetensors"))
    return found


def relative_errors(
    found: dict[str, Tensor], expected: dict[str, Tensor], kind: str
) -> list[float]:
    names = [name for name in expected if name.startswith(kind)]
    assert names and all(expected[name].norm() > 0 for name in names)
    return [float((found[n] - expected[n]).norm() / expected[n].norm()) for n in names]


def test_the_ranks_are_real_and_each_has_groups(worked: Any) -> None:
    facts, _ = worked[2]
    assert facts["size"] == 2 and facts["backend"] == "gloo"
    shares = {told["rank"]: told["groups"] for told in facts["ranks"]}
    assert shares == {0: [0, 3], 1: [2]}
    assert worked[1][0]["size"] == 1


def test_the_summed_gradient_is_that_of_one_rank(worked: Any) -> None:
    assert max(relative_errors(worked[2][1], worked[1][1], "gradient.")) < 1e-5
    assert worked[2][0]["loss"] == pytest.approx(worked[1][0]["loss"], rel=1e-5)


def test_three_updates_on_the_same_completions_agree(worked: Any) -> None:
    assert max(relative_errors(worked[2][1], worked[1][1], "update.")) < 1e-2


def test_a_job_on_two_ranks_samples_what_it_samples_on_one(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", save_tiny_model(tmp_path / "model"))
    runs = {}
    for size in (1, 2):
        folder = tmp_path / f"run{size}"
        arguments = [
            "train",
            str(job),
            "engine.evaluation.at_start=false",
            "--run-dir",
            str(folder),
        ]
        done = run_ranks(size, "rft", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        environment = json.loads((folder / "env.json").read_text())
        assert environment["world_size"] == size
        assert environment["backend"] == ("gloo" if size == 2 else "none")
        runs[size] = open_run(str(folder), tmp_path)
    columns = ("ordinal", "row", "sample", "completion", "num_tokens", "reward")
    first = {
        size: [{c: row[c] for c in columns} for row in run.samples(1)] for size, run in runs.items()
    }
    assert len(first[1]) == 16
    assert first[2] == first[1]
    assert canary_rewards(runs[2]) == canary_rewards(runs[1])
    assert canary_rewards(runs[1])[0]["canary/echo_reward_mean"] == pytest.approx(2 / 7)


def canary_rewards(run: Run) -> list[dict[str, Any]]:
    """What the canaries earned, evaluation after evaluation: the policy has no part in it."""
    found = [{k: v for k, v in row.items() if k.startswith("canary/")} for row in run.metrics()]
    return [rewards for rewards in found if rewards]
