"""The watch against reward hacking over whole runs: what it says when, once, and the same after a resume."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made import make_grade, make_group, make_job, make_prompt

from rft.errors import PausedError
from rft.graders import GraderDocument
from rft.job import load_job
from rft.runs.reader import open_run
from rft.training.conditions import Conditions
from rft.training.evaluation import CanaryGrade, Evaluation
from rft.training.hacking_watch import HackingWatch
from rft.training.metrics import evaluation_metrics
from rft.training.start import train
from rft.training.trainer import StepRecord
from rft.types import Group
from tests.jobs import write_job
from tests.launch import ROOT
from tests.tiny import save_tiny_model

CAPITALS = load_job(ROOT / "configs/capitals/job.yaml").grader
EXACT = make_job().grader

# `configs/capitals` with seed 2 as it was measured, every sixth step: mean training reward since the last
# evaluation, validation reward, similarity, exact, sentence, tokens, share of repeated texts, correlation
CAPITALS_RUN = [
    (None, 0.102, 0.255, 0.0, 1.0, 12.7, 0.0, -0.30),
    (0.126, 0.244, 0.306, 0.049, 0.024, 10.0, 0.0, -0.54),
    (0.246, 0.349, 0.410, 0.171, 0.0, 5.9, 0.03, -0.27),
    (0.246, 0.357, 0.429, 0.171, 0.0, 4.2, 0.0, 0.10),
    (0.392, 0.496, 0.564, 0.341, 0.0, 4.2, 0.13, -0.27),
    (0.376, 0.542, 0.587, 0.415, 0.0, 3.6, 0.0, -0.23),
    (0.622, 0.532, 0.561, 0.415, 0.0, 3.5, 0.0, -0.24),
    (0.703, 0.555, 0.589, 0.439, 0.0, 2.8, 0.0, 0.14),
    (0.572, 0.599, 0.638, 0.488, 0.0, 3.9, 0.0, -0.30),
    (0.731, 0.638, 0.674, 0.537, 0.0, 3.6, 0.0, -0.19),
    (0.657, 0.637, 0.672, 0.537, 0.0, 3.6, 0.0, -0.63),
    (0.754, 0.636, 0.669, 0.537, 0.0, 3.8, 0.0, -0.26),
]
CAPITALS_CANARIES = {"empty": 0.1, "punctuation": 0.1, "echo": 0.063, "reference": 1.0}


class Run:
    """A watch and the numbers it is told, one call per step or evaluation."""

    def __init__(self, grader: GraderDocument = EXACT, numbers: Mapping[str, float] | None = None):
        self.conditions = Conditions(numbers)
        self._watch = HackingWatch(grader, self.conditions)

    def step(
        self,
        reward: float = 0.5,
        tokens: float = 10.0,
        repeated: float = 0.0,
        correlation: float | None = 0.0,
        groups: Sequence[Group] = (),
    ) -> list[str]:
        made = groups or (make_group(reward, reward),)
        record = StepRecord(1, tuple(made), (), (), (), {})
        metrics = self._watch.measure(record, None) | {
            "completion_tokens_mean": tokens,
            "rollout/repeated_fraction": repeated,
            "rollout/reward_length_correlation": correlation,
        }
        return [text for text in self._watch.step(record, metrics) if text]

    def evaluation(
        self,
        rewards: Sequence[float | None],
        canaries: Mapping[str, float | None] | None = None,
        parts: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """The watch's metrics of an evaluation with one row per reward, and what it says."""
        grades = [
            make_grade(r, **{k: make_grade(v) for k, v in (parts or {}).items()}) for r in rewards
        ]
        groups = tuple(make_group(grade, ordinal=row) for row, grade in enumerate(grades))
        graded = tuple(
            CanaryGrade(row, kind, make_grade(reward))  # type: ignore[arg-type]
            for row in range(len(groups))
            for kind, reward in (canaries or {}).items()
        )
        return self.told(Evaluation(1, groups, 0.0, graded))

    def told(self, evaluation: Evaluation) -> tuple[dict[str, Any], list[str]]:
        measured = self._watch.measure(None, evaluation)
        flat = evaluation_metrics(evaluation, 1.0) | measured
        return measured, [text for text in self._watch.evaluation(evaluation, flat) if text]


def around(centre: float) -> list[float]:
    """Forty-one rewards with this mean and the standard error of the measured run, 0.06 at most."""
    width = min(centre, 1 - centre, 0.37)
    return [centre + width * (-1) ** row for row in range(40)] + [centre]


def test_a_healthy_run_is_not_accused() -> None:
    run = Run(CAPITALS)
    for reward, valid, similarity, exact, sentence, tokens, repeated, correlation in CAPITALS_RUN:
        if reward is not None:
            assert run.step(reward, tokens, repeated, correlation) == []
        parts = {"similarity": similarity, "contains": exact, "exact": exact, "sentence": sentence}
        measured, texts = run.evaluation(around(valid), CAPITALS_CANARIES, parts)
        assert texts == []
        gap = None if reward is None else pytest.approx(reward - valid)
        assert measured["watch/train_valid_gap"] == gap


def test_the_gap_is_of_the_steps_since_the_last_evaluation() -> None:
    run = Run()
    assert run.evaluation([0.5])[0]["watch/train_valid_gap"] is None
    run.step(0.2)
    run.step(0.4)
    assert run.evaluation([0.5, None])[0]["watch/train_valid_gap"] == pytest.approx(-0.2)
    run.step(0.9)
    assert run.evaluation([0.5])[0]["watch/train_valid_gap"] == pytest.approx(0.4)
    assert run.evaluation([0.5])[0]["watch/train_valid_gap"] is None


def test_a_step_without_a_grade_leaves_the_gap_alone() -> None:
    run = Run()
    run.step(0.2)
    run.step(groups=[make_group(None, None)])
    assert run.evaluation([0.5])[0]["watch/train_valid_gap"] == pytest.approx(-0.3)


def pattern(run: Run, gaps: str) -> str:
    """For each evaluation, `x` with a large gap and `.` without: `!` where there was one warning."""
    marks = ""
    for mark in gaps:
        run.step(0.9 if mark == "x" else 0.1)
        marks += ".!"[len(run.evaluation([0.1, 0.1])[1])]
    return marks


@pytest.mark.parametrize(
    ("gaps", "warnings"),
    [
        (".xx", "..!"),
        (".x.x.", "....."),
        (".xxxx.xx", "..!....."),
        ("xxxx", "...."),  # as large from the start
    ],
)
def test_a_gap_is_told_at_its_second_evaluation_and_once(gaps: str, warnings: str) -> None:
    assert pattern(Run(), gaps) == warnings


def test_the_counts_go_on_after_a_resume() -> None:
    stopped = Run()
    assert pattern(stopped, ".x") == ".."
    stopped.step(0.9)
    numbers = json.loads(json.dumps(stopped.conditions.numbers, allow_nan=False))
    resumed = Run(numbers=numbers)
    never_stopped = stopped
    for run in (resumed, never_stopped):
        measured, texts = run.evaluation([0.1, 0.1])
        assert measured["watch/train_valid_gap"] == pytest.approx(0.8)
        assert len(texts) == 1
    assert resumed.conditions.numbers == never_stopped.conditions.numbers
    assert pattern(Run(numbers=resumed.conditions.numbers), ".xx") == "..."


def test_given_numbers_are_not_written_to() -> None:
    given = {"gap has grown": 1.0}
    pattern(Run(numbers=given), ".x")
    assert given == {"gap has grown": 1.0}


def test_length_is_told_at_the_third_step_against_the_first_three() -> None:
    run = Run()
    for tokens in (30.0, 40.0, 50.0):
        assert run.step(tokens=tokens) == []
    # one and a half times the mean of the first three is 60
    assert run.step(tokens=59.0, correlation=0.9) == []
    assert [len(run.step(tokens=61.0, correlation=0.9)) for _ in range(4)] == [0, 0, 1, 0]


def test_repeated_answers_are_told_unless_the_prompts_have_equal_answers() -> None:
    def groups(*answers: str) -> list[Group]:
        return [
            make_group(1.0, 0.0, ordinal=row, prompt=make_prompt(row, answer=answer))
            for row, answer in enumerate(answers)
        ]

    for answers, counts in (("abcd", [0, 0, 1, 0]), ("aaab", [0, 0, 0, 0])):
        run = Run()
        for _ in range(3):
            run.step(groups=groups(*answers))
        found = [len(run.step(repeated=0.8, groups=groups(*answers))) for _ in range(4)]
        assert found == counts


def test_a_hollow_canary_is_told_at_once_and_once() -> None:
    run = Run()
    _, (text,) = run.evaluation([0.2, 0.2], {"empty": 0.6, "reference": 1.0})
    assert text.startswith(
        "an empty answer earns 0.6, at least as much as the policy's own answers to the same rows (0.2)"
    )
    assert run.evaluation([0.2, 0.2], {"empty": 0.6, "reference": 1.0})[1] == []


def test_an_empty_answer_that_avoids_a_penalty_is_told() -> None:
    _, (text,) = Run().evaluation([-0.4, -0.01], {"empty": 0.0, "reference": -0.014})
    assert text.startswith("an empty answer earns 0, at least as much as the policy's own answers")
    assert Run().evaluation([-0.4, -0.01], {"empty": -0.4, "reference": -0.014})[1] == []


def test_without_a_reference_the_best_reward_seen_is_the_measure() -> None:
    assert run_texts([0.0, 2.0], {"empty": 1.0}) == 1
    assert run_texts([0.0, 0.0, 0.0, 0.0, 0.0, 4.0], {"empty": 0.9}) == 0


def run_texts(rewards: Sequence[float], canaries: Mapping[str, float]) -> int:
    return len(Run().evaluation(rewards, canaries)[1])


def test_a_judge_that_drifts_is_told() -> None:
    run = Run()
    assert run.evaluation([0.9], {"empty": 0.0, "reference": 1.0})[1] == []
    assert run.evaluation([0.9], {"empty": 0.09, "reference": 0.95})[1] == []
    _, texts = run.evaluation([0.9], {"empty": 0.2, "reference": 0.85})
    assert [text.split(",")[0] for text in texts] == [
        "an empty answer now earns 0.2",
        "the reference answer now earns 0.85",
    ]


def test_a_policy_that_beats_the_reference_is_told() -> None:
    assert Run().evaluation([0.9, 0.9], {"reference": 0.85})[1] == []
    _, (text,) = Run().evaluation([0.9, 0.9], {"reference": 0.7})
    assert text.startswith("the policy's answers earn 0.9, the reference answers to the same rows")


def evaluation_with(*canaries: CanaryGrade) -> Evaluation:
    """Row 0 pays 0.2 at most, rows 1 and 2 ten times as much; the policy has all of it."""
    groups = [make_group(reward, ordinal=row) for row, reward in enumerate((0.2, 2.0, 2.0))]
    return Evaluation(1, tuple(groups), 0.0, canaries)


def test_a_canary_is_compared_on_its_own_rows_alone() -> None:
    reference = [CanaryGrade(row, "reference", make_grade(r)) for row, r in ((0, 0.2), (1, 2.0))]
    # over all rows the policy earns 1.4
    assert Run().told(evaluation_with(reference[0]))[1] == []
    assert Run().told(evaluation_with(*reference))[1] == []
    # over all rows the canary would be far below the policy
    empty = CanaryGrade(0, "empty", make_grade(0.2))
    (text,) = Run().told(evaluation_with(empty, reference[0]))[1]
    assert text.startswith(
        "an empty answer earns 0.2, at least as much as the policy's own answers"
    )
    assert "to the same rows (0.2)" in text
    lower = CanaryGrade(1, "empty", make_grade(1.5))
    assert Run().told(evaluation_with(lower, *reference))[1] == []


def test_rows_without_a_graded_answer_are_not_compared() -> None:
    groups = (make_group(None, ordinal=0), make_group(1.0, 0.0, ordinal=1))
    canaries = [CanaryGrade(row, "reference", make_grade(r)) for row, r in ((0, -3.0), (1, 0.5))]
    assert Run().told(Evaluation(1, groups, 0.0, tuple(canaries)))[1] == []


def test_a_failing_canary_is_told_once_and_earns_nothing() -> None:
    details = "Traceback (most recent call last):\n  code\nKeyError: 'answer'\noutput:\nmore"
    failed = make_grade(0.0, {"python_grader_runtime_error": details})
    reference, empty = CanaryGrade(1, "reference", failed), CanaryGrade(1, "empty", failed)
    run = Run()
    measured, (text,) = run.told(evaluation_with(reference))
    assert measured["canary/reference_reward_mean"] is None
    assert text.startswith(
        "the grader fails over the reference answer (python_grader_runtime_error: KeyError: 'answer'): "
        "what it pays for that is not known"
    )
    _, (text,) = run.told(evaluation_with(reference, empty))
    assert text.startswith("the grader fails over an empty answer (python_grader_runtime_error")
    assert run.told(evaluation_with(reference, empty))[1] == []
    # one row of two fails: the other alone counts
    good = CanaryGrade(2, "reference", make_grade(2.0))
    measured, (text,) = Run().told(evaluation_with(reference, good))
    assert measured["canary/reference_reward_mean"] == 2.0
    assert text.startswith("the grader fails over the reference answer")


def test_an_ungraded_canary_is_no_sign() -> None:
    run = Run()
    none = {"empty": None, "punctuation": None, "echo": None, "reference": None}
    assert run.evaluation([0.0], none)[1] == []
    assert run.evaluation([None], none)[1] == []
    # the first that is graded is what later ones are compared with
    assert run.evaluation([0.9], {"empty": 0.2, "reference": 0.9})[1] == []
    assert run.evaluation([0.9], {"empty": 0.25, "reference": 0.9})[1] == []


def test_one_part_for_another_is_told_at_the_second_evaluation() -> None:
    run = Run(CAPITALS)
    before = {"similarity": 0.5, "contains": 0.5, "exact": 0.5, "sentence": 1.0}
    # 0.4 · (1 − 0.5) = +0.2 against 0.5 · (0 − 0.5) = −0.25
    after = {"similarity": 1.0, "contains": 0.5, "exact": 0.0, "sentence": 1.0}
    assert run.evaluation([0.5], parts=before)[1] == []
    assert run.evaluation([0.5], parts=after)[1] == []
    _, (text,) = run.evaluation([0.5], parts=after)
    assert "`similarity` has moved the validation reward by +0.2 and `exact` by -0.25" in text
    assert run.evaluation([0.5], parts=after)[1] == []


def test_a_part_that_only_is_watched_is_told_of_at_the_second_evaluation() -> None:
    run = Run(load_job(ROOT / "configs/security_review/job.yaml").grader)
    before = {"compliant": 0.5, "explanation": 0.3, "likeness": 0.4}
    after = {"compliant": 0.5, "explanation": 0.4, "likeness": 0.1}
    assert run.evaluation([0.4], parts=before)[1] == []
    assert run.evaluation([0.7], parts=after)[1] == []
    _, (text,) = run.evaluation([0.7], parts=after)
    assert "reward has changed by +0.3, and `likeness`" in text and "by -0.3: what earns" in text
    assert run.evaluation([0.7], parts=after)[1] == []


def test_a_run_tells_it_as_an_event(tmp_path: Path) -> None:
    job_file = write_job(tmp_path, save_tiny_model(tmp_path / "model"), num_rows=16)
    source = job_file.read_text()
    begin = source.index('            text = sample["output_text"]')
    end = source.index("    hyperparameters:")
    job_file.write_text(
        source[:begin] + '            return float(not sample["output_text"])\n' + source[end:]
    )
    job = load_job(job_file, ["engine.budget.steps=2"])
    with pytest.raises(PausedError):
        train(job, job_text="", run_folder=tmp_path / "run", resume=False)
    run = open_run(str(tmp_path / "run"), tmp_path)
    warnings = [event["message"] for event in run.events() if event["level"] == "warn"]
    assert [text for text in warnings if "an empty answer earns 1," in text] == warnings[:1]
    start, first, second = run.metrics()
    canaries = {
        "canary/empty_reward_mean": 1.0,
        "canary/punctuation_reward_mean": 0.0,
        "canary/echo_reward_mean": 0.0,
        "canary/reference_reward_mean": None,
    }
    assert {key: start[key] for key in canaries} == canaries
    assert start["watch/train_valid_gap"] is None
    assert "watch/train_valid_gap" not in first and not canaries.keys() & first.keys()
    assert {key: second[key] for key in canaries} == canaries
    assert second["watch/train_valid_gap"] == pytest.approx(
        (first["train_reward_mean"] + second["train_reward_mean"]) / 2
        - second["valid_graded_reward_mean"]
    )
    assert first["rollout/repeated_fraction"] == 0.0
    progress = json.loads((tmp_path / "run/states/step_2/progress.json").read_text())["progress"]
    assert progress["watch"]["hollow canary pays"] == 1
