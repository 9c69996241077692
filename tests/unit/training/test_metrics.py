"""Every number of a step and of an evaluation, from a small record worked by hand."""

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from made import make_completion, make_evaluation, make_grade, make_group, make_prompt

from rft.graders.fault import Flag
from rft.graders.multi import merge_errors
from rft.runs.results import ANY_GRADER_ERRORS, EXTRA_ERRORS, error_kinds, results_columns
from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA
from rft.training.evaluation import Evaluation
from rft.training.metrics import (
    all_errors,
    errors_by_part,
    evaluation_metrics,
    evaluation_rows,
    grading_failures,
    metric_tree,
    results_row,
    sample_rows,
    step_metrics,
)
from rft.training.trainer import StepRecord
from rft.training.update import Sums, Update
from rft.types import Grade

PARTS = [("whole", "multi"), ("exact", "string_check"), ("code", "python")]
SECONDS = {"sampling": 2.0, "training": 3.0, "sync": 0.25, "full_iteration": 5.5}


def multi_grade(
    reward: float | None, exact: float, code: float | None, own: str = "", **errors: str
) -> Grade:
    """A multi's grade as its grader makes it: `errors` are of the part `code`, `own` of the formula."""
    parts = {"exact": make_grade(exact), "code": make_grade(code, errors)}
    merged = merge_errors(parts)
    if own:
        merged["other_error"] = "; ".join(filter(None, [merged.get("other_error"), own]))
    return replace(make_grade(reward, merged, **parts), name="whole", type="multi")


def make_update(**sums: float) -> Update:
    values: dict[str, Any] = {
        "loss": 0.5, "policy_loss": 0.25, "kl": 0.125, "num_tokens": 8, "entropy": 4.0,
        "num_clipped": 2, "gap": 0.08, "gap_max": 0.05, "num_input_tokens": 30,
    }  # fmt: skip
    return Update(
        Sums(**(values | sums)),
        gradient_norm=3.0,
        update_norm=0.5,
        learning_rate=0.1,
        is_skipped=False,
    )


def make_record(updates: tuple[Update, ...] = (make_update(),)) -> StepRecord:
    """Prompt 0: rewards 1 and 0; prompt 1: one ungraded; prompt 2, replaced: 0.5 twice, the same tokens."""
    lively = make_group(
        multi_grade(1.0, 1.0, 1.0),
        multi_grade(0.0, 0.0, 0.0, sample_parse_error="no number"),
        completions=[
            make_completion((5, 6, 7), num_reasoning_tokens=2),
            make_completion((5,), finish_reason="length"),
        ],
    )
    half = make_group(
        multi_grade(None, 1.0, None, python_grader_server_error="slow"),
        multi_grade(0.5, 0.5, 0.5),
        ordinal=1,
        completions=[make_completion((8, 9)), make_completion((8, 10))],
    )
    dull = make_group(
        multi_grade(0.5, 0.5, 0.5),
        multi_grade(0.5, 0.5, 0.5),
        ordinal=2,
        completions=[make_completion((5, 6))] * 2,
    )
    advantages = ((0.7, -0.7), (None, None))
    return StepRecord(4, (lively, half), advantages, (dull,), updates, SECONDS)


def test_step_metrics() -> None:
    metrics = step_metrics(make_record())
    assert metrics.pop("timing/grading_tokens_per_second") is None  # no call was made
    # rewards 1 0 0.5 0.5 0.5: mean 0.5, Σ(x − 0.5)² = 0.5, std √(0.5/5); 6 rollouts of 12 tokens
    assert metrics == pytest.approx(
        {
            "train_reward_mean": 0.5,
            "train_reward_mean/exact": 3.5 / 6,  # 1 0 1 0.5 0.5 0.5
            "train_reward_mean/code": 0.5,  # 1 0 – 0.5 0.5 0.5
            "train_reward_std": math.sqrt(0.1),
            "completion_tokens_mean": 2.0,
            "reasoning_tokens_mean": 2 / 6,
            "mean_unresponsive_rewards": 1 / 6,
            "errors/train_python_grader_server_error_count": 1,
            "errors/train_python_grader_server_error_mean": 1 / 6,
            "errors/train_sample_parse_error_count": 1,
            "errors/train_sample_parse_error_mean": 1 / 6,
            "errors/code/train_python_grader_server_error_count": 1,
            "errors/code/train_python_grader_server_error_mean": 1 / 6,
            "errors/code/train_sample_parse_error_count": 1,
            "errors/code/train_sample_parse_error_mean": 1 / 6,
            "rollout/groups": 3,
            "rollout/zero_signal_groups": 1,
            "rollout/skipped_groups": 1,
            "rollout/resampled_groups": 1,
            "rollout/truncated_fraction": 1 / 6,
            "rollout/unanswered_fraction": 0.0,
            "rollout/distinct_fraction": (1 + 1 + 0.5) / 3,
            "loss/total": 0.5,
            "loss/policy": 0.25,
            "loss/kl": 0.125,
            "policy/entropy": 0.5,
            "policy/clipped_fraction": 0.25,
            "rollout/logprob_gap": 0.01,
            "rollout/logprob_gap_max": 0.05,
            "optimizer/gradient_norm": 3.0,
            "optimizer/update_norm": 0.5,
            "optimizer/skipped_updates": 0,
            "optimizer/learning_rate": 0.1,
            "optimizer/trained_tokens": 8,
            "timing/sampling": 2.0,
            "timing/training": 3.0,
            "timing/sync": 0.25,
            "timing/full_iteration": 5.5,
            "timing/grading": 0,
            "timing/grader_calls": 0,
            "timing/sampling_tokens_per_second": 6.0,
            "timing/training_tokens_per_second": 8 / 3,
            "timing/training_input_tokens_per_second": 10.0,
        },
        rel=1e-12,
    )


def test_several_updates() -> None:
    """The gap speaks of the first update, before the policy has moved from the sampler's."""
    second = make_update(num_tokens=2, entropy=1.0, num_clipped=3, gap=5.0, gap_max=4.0, kl=0.375)
    metrics = step_metrics(make_record((make_update(), second)))
    found = {key: metrics[key] for key in metrics if key.split("/")[0] in ("loss", "policy")}
    assert found == pytest.approx(
        {
            "loss/total": 1.0,
            "loss/policy": 0.5,
            "loss/kl": 0.25,
            "policy/entropy": 0.5,
            "policy/clipped_fraction": 0.5,
        }
    )
    assert metrics["rollout/logprob_gap"] == pytest.approx(0.01)
    assert metrics["rollout/logprob_gap_max"] == 0.05
    assert metrics["optimizer/trained_tokens"] == 10


def test_a_step_that_computed_nothing_has_no_ratios() -> None:
    nothing = make_update(num_tokens=0, entropy=0.0, num_clipped=0, gap=0.0, gap_max=0.0)
    metrics = step_metrics(make_record((nothing,)))
    for key in ("policy/entropy", "policy/clipped_fraction", "rollout/logprob_gap"):
        assert metrics[key] is None
    assert metrics["rollout/logprob_gap_max"] is None


def test_a_step_without_a_grade() -> None:
    group = make_group(None, None)
    metrics = step_metrics(StepRecord(1, (group,), ((None, None),), (), (make_update(),), SECONDS))
    assert math.isnan(metrics["train_reward_mean"]) and metrics["train_reward_std"] is None
    assert metrics["mean_unresponsive_rewards"] == 1
    assert (metrics["rollout/zero_signal_groups"], metrics["rollout/skipped_groups"]) == (0, 1)


def test_evaluation_metrics() -> None:
    rows = make_evaluation([1.0, None], [0.5, 0.0], step=4)
    metrics = evaluation_metrics(rows, pass_threshold=0.5)
    assert metrics == pytest.approx(
        {
            "valid_reward_mean": 0.375,
            "valid_reward_se": 0.125,  # row means 0.5 and 0.25
            "valid_graded_reward_mean": 0.5,
            "valid_ungraded_fraction": 0.25,
            "valid_pass@1": 0.5,
            "valid_pass@2": 1.0,
            "valid_completion_tokens_mean": 1.0,
            "valid_reasoning_tokens_mean": 0.0,
            "valid_truncated_fraction": 0.0,
            "valid_unanswered_fraction": 0.0,
            "timing/evaluation": 0.5,
            "timing/evaluation_tokens_per_second": 8.0,
        },
        rel=1e-12,
    )


def make_multi_evaluation() -> Evaluation:
    group = make_group(multi_grade(0.5, 0.5, 0.5), multi_grade(None, 0.5, None, other_error="why"))
    return Evaluation(4, (group,), 0.5)


def flat_and_tree() -> tuple[dict[str, Any], dict[str, Any]]:
    record, evaluation = make_record(), make_multi_evaluation()
    flat = {"step": 4, "total_steps": 9} | step_metrics(record)
    flat |= evaluation_metrics(evaluation, 1.0)
    return flat, metric_tree(flat, PARTS, record, evaluation)


def test_the_tree_of_an_event() -> None:
    _, tree = flat_and_tree()
    assert (tree["step"], tree["total_steps"]) == (4, 9)
    assert tree["train_mean_reward"] == 0.5
    assert tree["full_valid_mean_reward"] == 0.25
    assert tree["full_valid_mean_parse_error"] == 0
    assert tree["scores"]["graders"] == [
        {"name": "whole", "type": "multi", "train_reward_mean": 0.5, "valid_reward_mean": 0.5},
        {
            "name": "exact",
            "type": "string_check",
            "train_reward_mean": pytest.approx(3.5 / 6),
            "valid_reward_mean": 0.5,
        },
        {"name": "code", "type": "python", "train_reward_mean": 0.5, "valid_reward_mean": 0.5},
    ]
    exact, code = tree["errors"]["graders"][1:]
    assert set(exact) == {"name", "type"} | {
        f"{split}_{kind}_{measure}"
        for kind in ("sample_parse_error", "invalid_variable_error", "other_error")
        for split in ("train", "valid")
        for measure in ("mean", "count")
    }
    assert exact["train_sample_parse_error_count"] == 0
    assert code["train_sample_parse_error_count"] == 1
    assert code["train_sample_parse_error_mean"] == pytest.approx(1 / 6)
    assert code["valid_other_error_mean"] == 0.5
    assert code["train_python_grader_server_error_count"] == 1
    assert tree["usage"]["samples"] == {
        "train_reasoning_tokens_mean": pytest.approx(2 / 6),
        "train_reasoning_tokens_count": 2,
        "valid_reasoning_tokens_mean": 0,
        "valid_reasoning_tokens_count": 0,
    }
    assert tree["timing"]["step"] == {
        "sampling": 2.0, "training": 3.0, "eval": 0.5, "full_iteration": 5.5,
    }  # fmt: skip


def test_a_tree_without_an_evaluation_and_one_without_a_step() -> None:
    record, evaluation = make_record(), make_multi_evaluation()
    flat = {"step": 4, "total_steps": 9} | step_metrics(record)
    tree = metric_tree(flat, PARTS, record, None)
    assert tree["full_valid_mean_reward"] is None and tree["full_valid_mean_parse_error"] is None
    assert tree["scores"]["graders"][0]["valid_reward_mean"] is None
    assert tree["errors"]["graders"][2]["valid_other_error_count"] is None

    flat = {"step": 0, "total_steps": 9} | evaluation_metrics(evaluation, 1.0)
    tree = metric_tree(flat, PARTS, None, evaluation)
    assert tree["train_mean_reward"] is None and tree["full_valid_mean_reward"] == 0.25
    assert tree["timing"]["step"]["sampling"] is None


def test_a_line_of_results_fills_the_columns() -> None:
    flat, tree = flat_and_tree()
    row = results_row(flat, tree)
    assert set(row) == set(results_columns(PARTS))
    assert row["pg_loss_sum"] == 0.25 and row["total_loss_sum"] == 0.5
    assert row["scores/graders/python/code/valid_reward_mean"] == 0.5
    assert row["errors/graders/python/code/errors/train_sample_parse_error_count"] == 1


def test_sample_rows() -> None:
    rows = sample_rows(make_record())
    assert [(row["ordinal"], row["sample"]) for row in rows] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert [row["advantage"] for row in rows] == [0.7, -0.7, None, None, None, None]
    assert [row["reward"] for row in rows] == [1.0, 0.0, None, 0.5, 0.5, 0.5]
    assert [row["num_tokens"] for row in rows] == [3, 1, 2, 2, 2, 2]
    assert rows[1]["finish_reason"] == "length"
    assert rows[0]["errors"] == {}
    assert rows[2]["errors"] == {"code": {"python_grader_server_error": "slow"}}
    assert rows[2]["sub_rewards"] == {"exact": 1.0, "code": None}
    assert set(rows[0]) == set(SAMPLES_SCHEMA.names) - {"step"}


def test_evaluation_rows() -> None:
    group = make_group(1.0, 0.0, prompt=make_prompt(5, answer=42))
    rows = evaluation_rows(Evaluation(1, (group,), 0.0))
    assert set(rows[0]) == set(EVALUATION_SCHEMA.names) - {"step"}
    assert [(row["row"], row["sample"], row["item"]) for row in rows] == [
        (5, 0, {"answer": 42}),
        (5, 1, {"answer": 42}),
    ]


def test_errors_of_parts_are_errors_of_the_grade() -> None:
    grade = make_grade(
        0.0,
        {"a": "top"},
        part=make_grade(0.0, {"b": "deep"}, inner=make_grade(0.0, {"c": "deeper"})),
    )
    assert all_errors(grade) == {"a": "top", "b": "deep", "c": "deeper"}


def test_what_counts_as_a_grading_failure() -> None:
    grades = [
        make_grade(1.0),
        make_grade(0.0, {"sample_parse_error": "the sample's own fault"}),
        make_grade(0.0, {"other_error": "x"}),
        make_grade(None),
        make_grade(1.0, part=make_grade(None, {"python_grader_server_error": "x"})),
        make_grade(None, {"sample_parse_error": "excluded by on_exception"}),
        make_grade(0.0, {"invalid_variable_error": "{{ sample.output_tools[0] }}: …"}),
        make_grade(None, {"invalid_variable_error": "{{ item.answer }}: …"}),
        make_grade(0.0, {"sample_parse_error": "x", "other_error": "y"}),
        multi_grade(0.0, 0.0, 1.0, invalid_variable_error="{{ sample.output_tools[0] }}: …"),
    ]
    group = make_group(*grades)
    failed = grading_failures([group])
    assert [sample for _, sample in failed] == [2, 3, 4, 7, 8]
    assert all(found is group for found, _ in failed)


def test_errors_stand_under_the_part_that_raised_them() -> None:
    """A multi's own errors and those of its parts are told apart again, without loss."""
    of_both = multi_grade(0.0, 1.0, None, own="1 / 0; boom", other_error="down; out")
    assert of_both.errors == {"other_error": "code: down; out; 1 / 0; boom"}
    assert errors_by_part(of_both) == {
        "whole": {"other_error": "1 / 0; boom"},
        "code": {"other_error": "down; out"},
    }
    assert errors_by_part(multi_grade(0.0, 1.0, 1.0, own="1 / 0")) == {
        "whole": {"other_error": "1 / 0"}
    }
    assert errors_by_part(multi_grade(1.0, 1.0, 1.0)) == {}
    assert errors_by_part(make_grade(0.0, {"other_error": ""})) == {"exact": {"other_error": ""}}


def test_a_multi_that_is_called_as_one_of_its_parts() -> None:
    grade = replace(multi_grade(0.0, 1.0, None, own="1 / 0", other_error="down"), name="code")
    assert errors_by_part(grade) == {
        "code (multi)": {"other_error": "1 / 0"},
        "code": {"other_error": "down"},
    }


FAULTY = (
    multi_grade(1.0, 1.0, 1.0),
    multi_grade(0.0, 1.0, 0.0, python_grader_runtime_error="Traceback"),
    multi_grade(0.0, 1.0, 0.0, own="1 / 0", python_grader_runtime_error="Traceback"),
    multi_grade(None, 1.0, None, python_grader_server_error="down", other_error="odd"),
    multi_grade(0.0, 0.0, 0.0, own="1 / 0"),
)


def counts_by_part(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """How many rows of samples have a flag of a part."""
    pairs = [
        (part, flag) for row in rows for part, errors in row["errors"].items() for flag in errors
    ]
    return {pair: pairs.count(pair) for pair in pairs}


def test_counts_in_the_tree_are_those_of_the_samples() -> None:
    """Each error once: at the grader that raised it, in the tree, the flat metrics and the samples."""
    record = StepRecord(
        1, (make_group(*FAULTY[:4]),), ((None,) * 4,), (), (make_update(),), SECONDS
    )
    evaluation = Evaluation(1, (make_group(*FAULTY[3:]),), 0.5)
    flat = {"step": 1, "total_steps": 9} | step_metrics(record)
    flat |= evaluation_metrics(evaluation, 1.0)
    expected = {
        "train": {
            ("code", "python_grader_runtime_error"): 2,
            ("code", "python_grader_server_error"): 1,
            ("code", "other_error"): 1,
            ("whole", "other_error"): 1,
        },
        "valid": {
            ("code", "python_grader_server_error"): 1,
            ("code", "other_error"): 1,
            ("whole", "other_error"): 1,
        },
    }
    rows = {"train": sample_rows(record), "valid": evaluation_rows(evaluation)}
    tree = metric_tree(flat, PARTS, record, evaluation)
    for split, counts in expected.items():
        assert counts_by_part(rows[split]) == counts
        in_tree = {
            (entry["name"], kind): entry[f"{split}_{kind}_count"]
            for entry in tree["errors"]["graders"]
            for kind in error_kinds(entry["type"])
            if entry[f"{split}_{kind}_count"]
        }
        assert in_tree == counts
        in_flat = {
            (key.split("/")[1], key.split("/")[2][len(split) + 1 : -len("_count")]): value
            for key, value in flat.items()
            if key.count("/") == 2 and f"/{split}_" in key and key.endswith("_count")
        }
        assert in_flat == counts
        num_rows = len(rows[split])
        for (part, kind), count in counts.items():
            assert flat[f"errors/{part}/{split}_{kind}_mean"] == count / num_rows
            (entry,) = [e for e in tree["errors"]["graders"] if e["name"] == part]
            assert entry[f"{split}_{kind}_mean"] == count / num_rows
    # a rollout counts once for a kind, though two of its graders raised it
    assert flat["errors/train_other_error_count"] == 2
    assert flat["errors/valid_other_error_count"] == 2
    assert flat["errors/valid_other_error_mean"] == 1.0


def test_a_flag_without_a_column_is_counted_as_another_error() -> None:
    refused = {"model_grader_refusal_error": "no"}
    group = make_group(
        make_grade(None, refused), make_grade(None, refused | {"other_error": "odd"})
    )
    record = StepRecord(1, (group,), ((None, None),), (), (make_update(),), SECONDS)
    flat = {"step": 1, "total_steps": 9} | step_metrics(record)
    tree = metric_tree(flat, [("exact", "string_check")], record, None)
    assert tree["errors"]["graders"][0]["train_other_error_count"] == 2
    assert flat["errors/train_model_grader_refusal_error_count"] == 2
    row = results_row(flat, tree)
    assert set(row) <= set(results_columns([("exact", "string_check")]))


def test_flat_metrics_name_parts_of_a_multi_alone() -> None:
    """The errors of a job's only grader are those of the job."""
    record = StepRecord(
        1,
        (make_group(make_grade(0.0, {"other_error": "x"})),),
        ((0.0,),),
        (),
        (make_update(),),
        SECONDS,
    )
    keys = {key for key in step_metrics(record) if key.startswith("errors/")}
    assert keys == {"errors/train_other_error_count", "errors/train_other_error_mean"}


def raised_flags(module: Path) -> set[str]:
    """The flags that a grader's source names."""
    flags = set(get_args(Flag))
    tree = ast.parse(module.read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {text for text in texts if text in flags}


def test_every_flag_that_a_grader_raises_has_its_columns() -> None:
    graders = Path(__file__).parents[3] / "rft" / "graders"
    own = {path.stem: raised_flags(path) for path in graders.glob("*.py") if path.stem != "fault"}
    assert own["python"] and own["template"] and own["grader"]
    judges = ("model_grader", "judge_http", "judge_reply")
    for name, flags in own.items():
        kind = "score_model" if name in judges else name
        assert flags <= {*ANY_GRADER_ERRORS, *EXTRA_ERRORS.get(kind, ())}, name


def test_timing_counts_the_calls_that_were_made() -> None:
    """A grade that was used again has no latency and is no call."""

    def graded(latency: float, part_latency: float) -> Grade:
        parts = {name: replace(make_grade(1.0), latency=part_latency) for name in ("exact", "code")}
        return replace(make_grade(1.0, **parts), latency=latency)

    group = make_group(graded(0.5, 0.125), graded(0.25, 0.0625), graded(0.0, 0.0))
    record = StepRecord(1, (group,), ((0.0,) * 3,), (), (make_update(),), SECONDS)
    flat = {"step": 1, "total_steps": 9} | step_metrics(record)
    assert (flat["timing/grading"], flat["timing/grader_calls"]) == (0.75, 2)
    assert flat["timing/grading_tokens_per_second"] == pytest.approx(2 / 0.75)
    graders = metric_tree(flat, PARTS, record, None)["timing"]["graders"]
    assert [entry["train_execution_latency_mean"] for entry in graders] == [0.375, 0.09375, 0.09375]
    assert graders[0]["valid_execution_latency_mean"] is None


def test_timing_of_the_sampler_is_told_where_it_is_known() -> None:
    spent = {"prefill": 0.5, "prefill_tokens": 40.0, "decode": 0.0, "decode_tokens": 0.0}
    flat = step_metrics(replace(make_record(), sampler_spent=spent))
    told = {key: value for key, value in flat.items() if "prefill" in key or "decode" in key}
    assert told == {
        "timing/prefill": 0.5,
        "timing/prefill_tokens_per_second": 80.0,
        "timing/decode": 0.0,
        "timing/decode_tokens_per_second": None,
    }
    assert not [key for key in step_metrics(make_record()) if "prefill" in key or "decode" in key]


def test_training_is_timed_over_all_updates_of_a_step() -> None:
    second = make_update(num_tokens=4, num_input_tokens=15)
    flat = step_metrics(make_record((make_update(), second)))
    assert flat["timing/training_tokens_per_second"] == pytest.approx(12 / 3)
    assert flat["timing/training_input_tokens_per_second"] == pytest.approx(45 / 3)
