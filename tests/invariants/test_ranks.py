"""Invariant 8: two and four real ranks compute what one computes."""

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

Worked = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]

RUNS = {
    "one": (1, 100_000, -1),
    "two": (2, 10, -1),
    "two, short of memory": (2, 31, 1),
    "four": (4, 15, -1),
}
"""Ranks, token budget, and the rank on which memory runs out once."""


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """Facts and tensors of the same work done by one rank, two and four."""
    found = {}
    for name, (size, budget, short_rank) in RUNS.items():
        folder = tmp_path_factory.mktemp("ranks")
        arguments = [str(folder), str(budget), str(short_rank)]
        done = run_ranks(size, "tests.invariants.gradient_worker", *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        facts = json.loads((folder / "facts.json").read_text())
        found[name] = (facts, load_file(folder / "tensors.safetensors"))
    return found


def relative_errors(
    found: dict[str, Tensor], expected: dict[str, Tensor], kind: str
) -> list[float]:
    names = [name for name in expected if name.startswith(kind)]
    assert names and all(expected[name].norm() > 0 for name in names)
    return [float((found[n] - expected[n]).norm() / expected[n].norm()) for n in names]


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("one", [[53]]),
        ("two", [[18, 12, 10], [13, 16, 10, 10]]),
        ("four", [[18], [16], [10, 14], [13, 12]]),
    ],
)
def test_the_ranks_are_real_and_share_the_tokens(
    worked: Worked, name: str, passes: list[list[int]]
) -> None:
    """Groups of 21, 18 and 14 packed tokens; under 15 tokens their parts are 13, 16, 10 · 18, 12 · 14,
    under 10 the last has 10, 10."""
    facts, _ = worked[name]
    assert facts["size"] == len(passes) == RUNS[name][0]
    assert facts["backend"] == ("gloo" if len(passes) > 1 else "none")
    assert {told["rank"]: told["passes"] for told in facts["ranks"]} == dict(enumerate(passes))
    assert facts["num_input_tokens"] == sum(sum(of_rank) for of_rank in passes)


@pytest.mark.parametrize("name", ["two", "four"])
def test_the_summed_gradient_is_that_of_one_rank(worked: Worked, name: str) -> None:
    assert max(relative_errors(worked[name][1], worked["one"][1], "gradient.")) < 1e-5
    assert worked[name][0]["loss"] == pytest.approx(worked["one"][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["two", "four"])
def test_three_updates_on_the_same_completions_agree(worked: Worked, name: str) -> None:
    assert max(relative_errors(worked[name][1], worked["one"][1], "update.")) < 1e-2


def test_when_one_rank_runs_out_of_memory_both_begin_again_with_half_of_the_largest(
    worked: Worked,
) -> None:
    facts, tensors = worked["two, short of memory"]
    # half of the largest: 21 tokens, and one or two for what completions keep of the prompt
    assert facts["token_budget"] == 11
    # rank 0 had finished its one pass, of 21 tokens; rank 1 failed in its second
    passes = [told["passes"] for told in facts["ranks"]]
    assert passes == [[21, 18, 12, 10], [18, 14, 13, 16, 10, 10]]
    expected = worked["two"][1]
    assert tensors.keys() == expected.keys()
    assert all(tensors[key].equal(expected[key]) for key in expected)


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
