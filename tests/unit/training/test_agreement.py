"""Ranks that differ are named, with what differs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import make_job

from rft.errors import MachineError
from rft.training.agreement import (
    Fingerprint,
    common_text,
    drift,
    fingerprint,
    refuse_drift,
    tensors_digest,
)
from rft.training.ranks import Ranks
from tests.launch import run_ranks

SAME = Fingerprint(
    "a" * 64, "b" * 64, 3, "c" * 64, "f" * 64, "", {"torch": "2.13.0", "rft": "0.1.0"}
)


def test_ranks_that_agree() -> None:
    assert drift([SAME, SAME, SAME]) == []


def test_each_difference_of_each_rank_is_told() -> None:
    other = replace(SAME, adapter="d" * 64)
    older = replace(SAME, step=2, versions={"torch": "2.12.1", "rft": "0.1.0"})
    told = [str(problem) for problem in drift([SAME, other, older])]
    assert told == [
        "rank 1 has another adapter than rank 0: dddddddddddd instead of cccccccccccc (rank 1) → "
        "let all processes see the same run folder and the same model",
        "rank 2 has another step than rank 0: 2 instead of 3 (rank 2) → let all processes see the "
        "same run folder, on a disk that they share",
        "rank 2 has another torch than rank 0: 2.12.1 instead of 2.13.0 (rank 2) → start every "
        "process in the same environment",
    ]


def test_a_rank_that_lacks_a_library_differs() -> None:
    bare = replace(SAME, versions={"rft": "0.1.0"})
    (problem,) = drift([SAME, bare])
    assert problem.what == "rank 1 has another torch than rank 0: none instead of 2.13.0"
    (problem,) = drift([bare, SAME])
    assert problem.what == "rank 1 has another torch than rank 0: 2.13.0 instead of none"


def test_ranks_may_have_different_cores() -> None:
    few, many, other = (
        common_text(make_job(f"engine.grading.concurrency={n}", f"seed={seed}"))
        for n, seed in ((2, 7), (64, 7), (2, 8))
    )
    assert few == many != other


def test_one_bit_of_an_adapter_shows() -> None:
    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(4, dtype=torch.bfloat16)}
    digest = tensors_digest(tensors)
    assert digest == tensors_digest(dict(reversed(tensors.items())))
    assert digest == tensors_digest({**tensors, "b": torch.ones(3, 2).T})
    for changed in (
        {**tensors, "b": torch.ones(3, 2)},
        {**tensors, "b": torch.ones(2, 3).nextafter(torch.tensor(2.0))},
        {**tensors, "a": -tensors["a"]},
        {"b": tensors["b"], "c": tensors["a"]},
    ):
        assert tensors_digest(changed) != digest


def test_one_process_agrees_with_itself() -> None:
    mine = fingerprint("model: tiny", "digest", 0, {"a": torch.ones(2)}, "base", "")
    assert {"python", "torch", "rft"} <= mine.versions.keys()
    refuse_drift(Ranks(use_cpu=True), mine)


class TwoRanks(Ranks):
    """Whatever it is told, the other rank has another job."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 2

    def gather(self, items):
        return [*items, replace(items[0], job="e" * 64)]


def test_drift_ends_the_job() -> None:
    with pytest.raises(MachineError, match=r"rank 1 has another job than rank 0: eeeeeeeeeeee"):
        refuse_drift(TwoRanks(), SAME)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two real ranks, of which the second is late and differs, left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    done = run_ranks(2, "tests.invariants.agreement_worker", str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def found_by(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"rank-{rank}.json").read_text())  # type: ignore[no-any-return]


def test_one_bit_of_one_rank_ends_both_in_the_same_words(two_ranks: Path) -> None:
    first, second = found_by(two_ranks, 0), found_by(two_ranks, 1)
    assert first == second
    assert (first["size"], first["backend"], first["agreed"]) == (2, "gloo", None)
    text = re.fullmatch(
        r"rank 1 has another adapter than rank 0: (\w{12}) instead of (\w{12}) \(rank 1\) → "
        r"let all processes see the same run folder and the same model",
        first["error"],
    )
    assert text is not None and text[1] != text[2]


def test_a_rank_that_comes_late_is_told_as_a_wait_for_the_others(two_ranks: Path) -> None:
    hang, going_on = (two_ranks / "told.txt").read_text().splitlines()
    assert re.search(
        r": waiting for the other ranks, in rft/training/ranks\.py:\d+ gather; all stacks", hang
    )
    assert going_on.startswith("going on after ")
    assert "gather" in (two_ranks / "hang-rank-0.txt").read_text()
