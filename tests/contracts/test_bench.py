"""scripts/bench: its arguments, the shape of its result, its arithmetic, and that both sides get one job."""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rft.graders import open_grader
from rft.graders.sample import make_sample
from rft.job import load_job
from scripts.benchmark import gemm, rft_worker
from scripts.benchmark.__main__ import complete, read_options, table
from scripts.benchmark.comparison import Bench, Plan
from scripts.benchmark.learning import Race, last_mean, seconds_until, verdict
from scripts.benchmark.page import write_page
from scripts.benchmark.ratios import (
    RATIOS,
    all_ratios,
    better_setting,
    medians,
    times_less,
    times_more,
)
from scripts.benchmark.rewards import REWARDS
from scripts.benchmark.rft_worker import TIE_BREAKER, tie_broken, without_learning
from scripts.benchmark.scaling import costs, padded_rows, points_of
from scripts.benchmark.scaling import verdict as scaling_verdict
from scripts.benchmark.settings import refuse_unequal
from scripts.benchmark.vllm_worker import Side
from scripts.benchmark.workers import ROOT, Worker, WorkerError, codes_of
from tests.jobs import resolved_job, write_job
from tests.tiny import save_tiny_model, tiny_model


def test_arithmetic_is_the_default_and_learning_modes_take_capitals() -> None:
    assert read_options(["step"]).job == "arithmetic"
    assert read_options(["time-to-reward"]).job == "capitals"
    assert read_options(["train", "--job", "capitals", "--json"]).json is True
    for wrong in (["walk"], ["step", "--job", "poems"], []):
        with pytest.raises(SystemExit):
            read_options(wrong)


def test_a_result_holds_every_ratio_and_null_for_what_was_not_measured() -> None:
    options = read_options(["train", "--json"])
    found = {"ratios": all_ratios(train_seconds=3.5, peak_memory=1.2), "samples": {}}
    result = json.loads(json.dumps(complete(found, options, 60.0)))
    assert tuple(result["ratios"]) == RATIOS == (
        "sample_tokens_per_second", "train_seconds", "step_seconds", "peak_memory",
        "time_to_reward",
    )  # fmt: skip
    assert result["ratios"]["train_seconds"] == 3.5
    assert result["ratios"]["step_seconds"] is None
    assert {"mode", "job", "machine", "samples", "seconds"} <= set(result)
    assert result["machine"]["num_threads"] == options.threads
    assert "train_seconds: 3.50" in table(result) and "step_seconds: not measured" in table(result)
    with pytest.raises(KeyError, match="speed"):
        all_ratios(speed=1.0)


def test_ratios_say_how_many_times_better() -> None:
    assert times_less(2.0, 10.0) == 5.0
    assert times_more(90.0, 30.0) == 3.0
    assert times_less(None, 10.0) is None and times_more(90.0, None) is None


def test_the_better_setting_is_the_faster_one_that_was_measured() -> None:
    samples = {
        "trl_tuned": [{"seconds": 9.0}, {"seconds": 1.0}, {"seconds": 5.0}],
        "trl_stock": [{"seconds": 6.0, "note": "x"}],
    }
    middle = medians(samples)
    assert middle == {"trl_tuned": {"seconds": 5.0}, "trl_stock": {"seconds": 6.0}}
    assert better_setting(middle, "seconds", ("trl_stock", "trl_tuned")) == "trl_tuned"
    assert better_setting(middle, "seconds", ("trl_stock", "other")) == "trl_stock"


class Told:
    """A side whose steps take so long, and that is told of each."""

    side = "trl_stock"

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.steps: list[int] = []

    def measure(self, worker: "Told", number: int) -> dict[str, Any]:
        assert worker is self
        self.steps.append(number)
        return {"seconds": self.seconds + number}


@pytest.mark.parametrize(
    ("seconds", "steps", "counted"), [(100.0, [1], [101.0]), (9.0, [1, 2, 3], [11.0, 12.0])]
)
def test_an_untuned_setting_is_measured_again_where_that_is_quick(
    seconds: float, steps: list[int], counted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the prompts of step after step: TRL goes through its rows in order."""
    told = Told(seconds)
    bench = object.__new__(Bench)
    bench.plan = Plan("arithmetic", 3, 13, 1, untuned=("stock",))
    bench.samples = {}
    monkeypatch.setattr(Bench, "trl", lambda self, setting: nullcontext(told))
    bench.note_untuned(told.measure)  # type: ignore[arg-type]
    assert told.steps == steps
    assert [sample["seconds"] for sample in bench.samples["trl_stock"]] == counted


def test_results_measured_at_different_times_name_all_their_commits() -> None:
    assert codes_of([{"code": "b"}, {"code": "a"}, {"code": "b"}]) == "a, b"
    assert codes_of([{"code": None}, {}]) == "unknown"
    assert codes_of([]) is None


def test_groups_without_signal_get_a_tie_breaker_and_others_keep_theirs() -> None:
    assert tie_broken((0.0, None, 0.0)) == (TIE_BREAKER, None, TIE_BREAKER)
    assert tie_broken((0.0, 0.0)) == (TIE_BREAKER, -TIE_BREAKER)
    assert tie_broken((0.5, 0.0, -0.5)) == (0.5, 0.0, -0.5)


def test_learning_can_be_taken_out_of_a_job() -> None:
    job = resolved_job()
    assert job.effective_learning_rate > 0
    assert without_learning(job).effective_learning_rate == 0


@pytest.mark.parametrize(
    "override",
    ["engine.training.kl_coefficient=0.1", "engine.rollout.top_p=0.9", "engine.lora.dropout=0.1"],
)
def test_a_job_that_the_other_side_is_not_told_of_is_refused(override: str) -> None:
    refuse_unequal(resolved_job())
    with pytest.raises(ValueError, match=override.split("=")[0].rpartition(".")[2]):
        refuse_unequal(resolved_job(override))


ANSWERS = {
    "capitals": [
        "Paris",
        " paris\n",
        "The capital of France is Paris.",
        "Capital",
        "",
        "Pari",
        "ß",
    ],
    "arithmetic": ["32", " 32 ", "28 + 4 = 32", "It is 132.", "", "33", "3 2"],
}


@pytest.mark.parametrize("name", ["capitals", "arithmetic"])
def test_plain_rewards_are_the_jobs_grader(name: str) -> None:
    job = load_job(ROOT / "configs" / name / "job.yaml")
    item = {"capital": "Paris", "country": "France", "sum": 32, "a": 28, "b": 4}
    with open_grader(job.grader, job.grading_settings) as grader:
        graded = [grader.grade(make_sample(text), item).reward for text in ANSWERS[name]]
    assert len(set(graded)) > 2
    assert [REWARDS[name](text, item) for text in ANSWERS[name]] == pytest.approx(graded, abs=1e-12)


def test_the_limit_is_the_sum_over_calls_and_a_prefill_has_a_small_head() -> None:
    by_rows = {
        4: {"q_proj": 1.0, "head": 0.5},
        8: {"q_proj": 2.0, "head": 0.75},
        50: {"q_proj": 10.0, "head": 100.0},
    }
    calls = [("prefill", 50, 2), ("decode", 8, 3)]
    assert gemm.rows_needed(calls, 4) == [4, 8, 50]
    assert gemm.limit_seconds(calls, by_rows, 4) == 2 * (10.0 + 0.5) + 3 * (2.0 + 0.75)


def test_each_product_takes_its_fastest_kernel_and_fuses_where_that_is_faster() -> None:
    slow = {"q_proj": 3.0, "k_proj": 1.0, "v_proj": 1.0, "q_proj+k_proj+v_proj": 4.0, "head": 5.0}
    quick = {"q_proj": 2.0, "k_proj": 2.0, "v_proj": 2.0, "q_proj+k_proj+v_proj": 6.0, "head": 4.0}
    assert gemm.fastest({"a": slow, "b": quick}) == {
        "q_proj": 2.0, "k_proj": 1.0, "v_proj": 1.0, "head": 4.0,
    }  # fmt: skip
    quick["q_proj+k_proj+v_proj"] = 3.5
    assert gemm.fastest({"a": slow, "b": quick}) == {"q_proj+k_proj+v_proj": 3.5, "head": 4.0}


@torch.inference_mode()
def test_the_limits_products_are_all_of_the_models_linear_layers() -> None:
    model = tiny_model()
    weights = gemm.model_weights(model)
    fused = [name for name, _ in weights if "+" in name]
    assert fused == ["q_proj+k_proj+v_proj", "gate_proj+up_proj"] * 3
    apart = {name: weight for name, weight in weights if "+" not in name}
    assert set(apart) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "head",
    }  # fmt: skip
    assert len([name for name, _ in weights if name == "down_proj"]) == 3
    assert weights[-1][1].shape == (260, 64)
    rows = torch.randn(5, 64)
    wanted = rows @ weights[-1][1].T
    for kernel in gemm.KERNELS.values():
        torch.testing.assert_close(kernel(weights[-1][1])(rows), wanted, rtol=1e-4, atol=1e-4)
    seconds = gemm.measured(gemm.operations(weights, gemm.plain), 5)
    assert all(value > 0 for value in seconds.values()) and set(seconds) == {n for n, _ in weights}


def test_a_side_that_never_reached_the_target_counts_as_its_elapsed_time() -> None:
    run: dict[str, Any] = {"reached_seconds": None, "elapsed_seconds": 900.0}
    assert seconds_until(run) == 900.0
    assert seconds_until(run | {"reached_seconds": 300.0}) == 300.0


def test_curves_are_compared_by_steps_20_to_30() -> None:
    flat = [0.0] * 19 + [0.5] * 11 + [1.0]
    assert last_mean(flat) == 0.5
    theirs = {str(seed): [mean] * 30 for seed, mean in enumerate((0.5, 0.6, 0.7))}
    found = verdict({"0": flat}, theirs)
    assert found["trl_standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["is_not_below"] is False
    assert verdict({"0": [0.55] * 30}, theirs)["is_not_below"] is True
    with pytest.raises(ValueError, match="29 steps"):
        last_mean([0.0] * 29)


def test_a_run_is_taken_up_only_when_it_had_ended(tmp_path: Path) -> None:
    race = Race("capitals", ("rft",), (7,), 0.5, 30, 60, 5, 60, 1, tmp_path)
    assert race.load("rft", 7) is None
    race.path("rft", 7).parent.mkdir()
    race.path("rft", 7).write_text(json.dumps({"ended": None}))
    assert race.load("rft", 7) is None
    race.path("rft", 7).write_text(json.dumps({"ended": "max_steps"}))
    assert race.load("rft", 7) == {"ended": "max_steps"}
    assert replace(race, job="arithmetic").load("rft", 7) is None


def test_scaling_covers_the_named_sizes() -> None:
    sizes = {axis: [p.value for p in points_of(axis)] for axis in ("group", "completion", "prompt")}
    assert [values[0] for values in sizes.values()] == [4, 16, 50]
    assert [values[-1] for values in sizes.values()] == [32, 512, 1000]
    assert [p.value for p in points_of("rows")] == [8, 16, 32, 64, 128]
    assert {p.overrides["engine.rollout.group_size"] for p in points_of("memory")} == {16}


def test_costs_are_medians_per_token_and_per_completion() -> None:
    sample = {"num_tokens": 10, "num_completions": 2, "completion_tokens_mean": 5.0}
    samples = [
        {**sample, "seconds": s, "sampling_seconds": s / 2, "training_seconds": s / 4}
        for s in (2.0, 4.0, 40.0)
    ]
    assert costs(samples) == {
        "sampling_per_token": 0.2,
        "training_per_token": 0.1,
        "seconds_per_completion": 2.0,
        "completion_tokens": 5.0,
    }
    assert costs([{**sample, "seconds": 5.0}])["training_per_token"] is None


def test_the_scaling_verdict_reads_the_points() -> None:
    rows = [{"value": 16, "sampling_per_token": 2.0}, {"value": 128, "sampling_per_token": 2.5}]
    group = [{"seconds_per_completion": cost} for cost in (3.0, 2.0)]
    found = scaling_verdict({"rows": rows, "group": group, "memory": [{"peak_memory": 3e9}]})
    assert found == {
        "128_rows_cost_no_more_per_token_than_16": False,
        "cost_per_completion_falls_as_the_group_grows": True,
        "512_tokens_of_a_group_of_16_within_4_GB": True,
    }


def test_the_page_shows_ratios_and_medians(tmp_path: Path) -> None:
    found = {
        "ratios": all_ratios(step_seconds=4.25),
        "medians": {"rft": {"seconds": 10.0}},
        "samples": {"rft": [{"seconds": 10.0}]},
        "peak_memory": {"rft": 2_500_000_000},
    }
    result = complete({"code": "abc1234", **found}, read_options(["step"]), 60.0)
    (tmp_path / "step-arithmetic.json").write_text(json.dumps(result))
    page = write_page(tmp_path).read_text(encoding="utf-8")
    processor = result["machine"]["processor"]
    assert f"| step | arithmetic | {processor} | abc1234 |  |  | 4.25 |  |  |" in page
    assert "| rft | 10 | 1 |" in page and "peak memory of rft: 2.50 GB" in page


def test_vllm_is_told_its_device_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CPU build is not called vllm, and cannot find out by itself."""
    (tmp_path / "vllm.py").write_text(
        "import os\nraise ImportError(os.environ.get('VLLM_TARGET_DEVICE', 'nothing'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "OMP_NUM_THREADS": "1"})
    with pytest.raises(ImportError, match=r"^cpu$"):
        Side().start({}, "adapter")


def test_a_worker_answers_over_its_pipe_and_tells_of_failures() -> None:
    import sys

    with Worker("limit", sys.executable, "gemm_worker", num_threads=1) as worker:
        with pytest.raises(WorkerError, match="limit failed at start") as failure:
            worker.ask("start", model_folder="/nowhere")
        assert "nowhere" in str(failure.value)
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("dance")


def test_rfts_side_makes_a_step_and_trains_on_what_it_recorded(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", save_tiny_model(tmp_path / "model"), num_rows=12)
    side = rft_worker.Side()
    side.start(str(job), learns=False, all_groups=True)
    step = side.step(1)
    assert step["num_completions"] == 16 and step["training_seconds"] > 0
    sampled = side.sample(2)
    assert sampled["num_completions"] == 16 and len(sampled["prompts"]) == 4
    assert len(side.record(2)["completion_ids"]) == 16


def test_prompts_made_longer_have_little_in_common(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for num_tokens, num_words in ((47, 3), (247, 204)):
        path = padded_rows(tmp_path / "rows.jsonl", tmp_path, num_tokens)
        contents = [json.loads(line)["messages"][0]["content"] for line in path.open()]
        assert [len(content.split()) for content in contents] == [num_words] * 3
        assert all(content.endswith(f"What is {n}?") for n, content in enumerate(contents))
    assert [content.split()[0] for content in contents] == ["0", "1", "2"]
