"""Time of a whole job from two measured steps, and what is told with it."""

from collections.abc import Mapping

import pytest
from made import make_completion, make_evaluation, make_group, make_job

from rft.cli.estimate import estimate_lines
from rft.training.estimate import time_document, warnings_of
from rft.training.trainer import StepRecord
from rft.training.update import Sums, Update

GIB = 2**30


def make_record(
    step: int,
    scale: float = 1.0,
    num_trained: int = 12,
    spent: Mapping[str, float] | None = None,
) -> StepRecord:
    """A step of 10 seconds, times `scale`."""
    sums = Sums(0.0, 0.0, 0.0, num_trained, 0.0, 0, 0.0, 0.0, 2 * num_trained)
    seconds = {
        "sampling": 5.0, "grading_wait": 1.0, "training": 4.0, "sync": 0.5, "full_iteration": 10.0,
    }  # fmt: skip
    group = make_group(1.0, 0.0, completions=[make_completion((5, 6, 7)), make_completion((5,))])
    return StepRecord(
        step,
        (group,),
        ((0.7, -0.7),),
        (),
        (Update(sums, 1.0, 1.0, 0.1, False),),
        {name: scale * value for name, value in seconds.items()},
        {} if spent is None else spent,
    )


SPENT = {"prefill": 0.5, "prefill_tokens": 50.0, "decode": 3.0, "decode_tokens": 60.0}
RECORDS = [make_record(1, 1.0, spent=SPENT), make_record(2, 0.6, spent=SPENT)]
"""10 and 6 seconds."""

EVALUATION = make_evaluation([1.0], [0.0])
"""Two rows of one token each, in half a second."""


def test_the_time_of_the_job_by_part() -> None:
    """20 rows, batches of 2: 10 steps of 8 s; evaluations of 7 rows every step, and one at the start."""
    found = time_document(make_job(), RECORDS, EVALUATION, 20, 7)
    parts = found.pop("parts")
    assert found == pytest.approx(
        {
            "total_steps": 10,
            "seconds_per_step": 8.0,
            "num_evaluations": 11,
            "seconds_per_evaluation": 0.5 * 7 / 2,
            "total_seconds": 80 + 11 * 1.75,
        }
    )
    each = {name: part["seconds_each"] for name, part in parts.items()}
    assert each == pytest.approx(
        {
            "prefill": 0.5,
            "decode": 3.0,
            "grading": 0.8,
            "training": 3.2,
            "sync": 0.4,
            "rest": 0.1,
            "evaluation": 1.75,
        }
    )
    rates = {name: part["tokens_per_second"] for name, part in parts.items()}
    assert rates == {
        "prefill": 100.0,
        "decode": 20.0,
        "grading": None,
        "training": pytest.approx(24 / 6.4),
        "sync": None,
        "rest": None,
        "evaluation": 4.0,
    }
    assert sum(part["total_seconds"] for part in parts.values()) == pytest.approx(
        found["total_seconds"]
    )
    assert parts["evaluation"]["total_seconds"] == pytest.approx(11 * 1.75)
    assert parts["training"]["total_seconds"] == pytest.approx(32)


def test_a_sampler_that_cannot_tell_has_one_part() -> None:
    parts = time_document(make_job(), [make_record(1)], EVALUATION, 20, 7)["parts"]
    assert "prefill" not in parts and "decode" not in parts
    assert parts["sampling"]["seconds_each"] == 4.0
    assert parts["sampling"]["tokens_per_second"] == 1.0


def test_warnings() -> None:
    assert warnings_of(RECORDS, 3 * GIB, 4 * GIB) == []
    (memory,) = warnings_of(RECORDS, 5 * GIB, 4 * GIB)
    assert "can ask for 5.0 GiB, and there are 4.0 GiB" in memory
    (signal,) = warnings_of([make_record(1, num_trained=0)], 3 * GIB, 4 * GIB)
    assert "nothing was trained" in signal
    # one step that trained is enough to go by
    assert warnings_of([make_record(1, num_trained=0), make_record(2)], GIB, 4 * GIB) == []


def test_what_a_person_reads() -> None:
    found = time_document(make_job(), RECORDS, EVALUATION, 20, 7) | {
        "peak_memory_bytes": 2 * GIB,
        "largest_step_bytes": 3 * GIB,
        "available_memory_bytes": 16 * GIB,
        "warnings": ["beware of the dog"],
    }
    lines = estimate_lines(found, width=80)
    assert lines[0] == (
        "the whole job: about 1 min 39 s: 10 steps of 8.0 s, 11 evaluations of 1.8 s"
    )
    table = {line.split("  ")[0].strip(): line.split()[-1] for line in lines[2:10]}
    assert table["completions (decode)"] == "20" and table["waiting for grades"] == "–"
    assert "32%" in next(line for line in lines if line.startswith("training"))
    assert lines[-2] == (
        "memory: 2.0 GiB at most in the measured steps; up to 3.0 GiB in a step with the longest "
        "completions; 16.0 GiB are there"
    )
    assert lines[-1] == "! beware of the dog"
