"""Whole runs with judges: a server that fails for a while loses nothing; a judge of this process, answers under a
schema and calls of tools go through a run, and a run that is resumed is the run that never stopped."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from rft.errors import PausedError
from rft.job import load_job
from rft.runs.documents import read_document
from rft.runs.tables import read_table
from rft.training.start import train
from tests.jobs import write_job
from tests.tiny import save_tiny_model
from tests.unit.graders.loopback import Request, reply, serving

INPUT = [{"role": "user", "content": "Grade {{ sample.output_text }}"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy", "zzz"]}, "b": {"type": "string", "maxLength": 4}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def job_with(folder: Path, **reinforcement: Any) -> Path:
    job_file = write_job(folder / "job", save_tiny_model(folder / "model"), num_rows=16)
    document = yaml.safe_load(job_file.read_text())
    document["method"]["reinforcement"].update(reinforcement)
    document["engine"]["rollout"] = {"group_size": 4, "max_completion_tokens": 40}
    document["engine"]["grading"] = {"judge": {"timeout_seconds": 2}, "error_pause_rate": 1.0}
    job_file.write_text(yaml.safe_dump(document, sort_keys=False))
    return job_file


def run_job(job_file: Path, folder: Path, *overrides: str, resume: bool = False) -> Path:
    job = load_job(job_file, overrides)
    train(job, job_text=job_file.read_text(), run_folder=folder, resume=resume)
    return folder


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("timing/")}
        for line in lines
    ]


def scored(request: Request) -> bytes:
    """The share of vowels that the judge is shown, as its result."""
    content = json.loads(request.body)["messages"][0]["content"]
    value = sum(letter in "aeiou" for letter in content) / len(content)
    document = {"choices": [{"finish_reason": "stop", "message": {
        "content": json.dumps({"steps": [], "result": value})}}]}  # fmt: skip
    return reply(json.dumps(document).encode())


def moody(request: Request, chance: random.Random, lock: threading.Lock) -> None:
    """Every third time something goes wrong."""
    with lock:
        mood = chance.randrange(12)
    match mood:
        case 0:
            request.reset()
        case 1:
            request.send(reply(b"", "500 Internal Server Error"))
        case 2:
            request.send(reply(b"", "429 Too Many Requests", "Retry-After: 60"))
        case 3:
            request.send(reply(b'{"choices": [{"message": {"content": "fine!"}}]}'))
        case _:
            request.send(scored(request))


def test_a_server_in_a_bad_mood_loses_no_run(tmp_path: Path) -> None:
    chance, lock = random.Random(0), threading.Lock()
    seen: list[Request] = []

    def answer(request: Request) -> None:
        seen.append(request)
        if len(seen) == 1:  # the test of the connection
            request.send(scored(request))
        else:
            moody(request, chance, lock)

    with serving(answer) as server:
        grader = {"type": "score_model", "name": "judge", "model": "m", "input": INPUT}
        grader["base_url"] = f"http://127.0.0.1:{server.port}/v1"
        run = run_job(job_with(tmp_path, grader=grader), tmp_path / "run")
    state = read_document(run / "state.json")
    assert state["status"] == "succeeded" and state["step"] == 4
    rows = [row for step in range(1, 5) for row in read_table(run / f"samples/step_{step}.parquet")]
    ungraded = [row for row in rows if row["reward"] is None]
    kinds = {flag for row in ungraded for flag in row["errors"]["judge"]}
    assert kinds == {"model_grader_server_error", "model_grader_parse_error"}
    assert 0 < len(ungraded) < len(rows) / 2
    counted = [line.get("mean_unresponsive_rewards") for line in metrics_of(run)[1:]]
    assert sum(counted) * len(rows) / 4 == pytest.approx(len(ungraded))


@pytest.fixture(scope="module")
def local_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = "Grade {{ sample.output_json.b }}"
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "local:base",
        "input": [{"role": "user", "content": content}],
        "sampling_params": {"max_completions_tokens": 60, "temperature": 1.0, "seed": 1},
    }
    weighing = {**judge, "name": "mean", "sampling_params": {"max_completions_tokens": 60}}
    check = {
        "type": "string_check",
        "name": "label",
        "operation": "eq",
        "input": "{{ sample.output_json.a }}",
        "reference": "yy",
    }
    grader = {
        "type": "multi",
        "graders": {"judge": judge, "mean": weighing, "label": check},
        "calculate_output": "0.4 * judge + 0.2 * mean + 0.4 * label",
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    folder = tmp_path_factory.mktemp("local")
    return job_with(folder, grader=grader, response_format=response_format)


@pytest.fixture(scope="module")
def local_run(local_job: Path) -> Path:
    return run_job(local_job, local_job.parent / "run")


def test_a_judge_of_this_process_grades_answers_under_a_schema(local_run: Path) -> None:
    rows = read_table(local_run / "samples/step_1.parquet")
    for row in rows:
        if row["finish_reason"] == "length":
            continue
        value = json.loads(row["output_text"])
        assert value.keys() == {"a", "b"}
        assert row["sub_rewards"]["label"] == float(value["a"] == "yy")
        assert 0 <= row["sub_rewards"]["judge"] <= 1
        assert 0 < row["sub_rewards"]["mean"] < 1 or not value["b"]  # hollow: not asked about
    for part in ("judge", "mean"):
        assert len({row["sub_rewards"][part] for row in rows if row["sub_rewards"][part]}) > 1
    for line in metrics_of(local_run)[1:]:
        assert line["rollout/logprob_gap"] < 1e-5 and line["rollout/logprob_gap_max"] < 5e-4
    tree = [json.loads(line) for line in (local_run / "events.jsonl").read_text().splitlines()]
    usage = [e["data"]["usage"]["graders"] for e in tree if e["type"] == "metrics"][1]
    assert usage[0]["model"] == "local:base" and usage[0]["train_prompt_tokens_count"] > 0


def test_a_resumed_run_with_a_judge_is_one_that_never_stopped(
    local_job: Path, local_run: Path
) -> None:
    folder = local_job.parent / "resumed"
    with pytest.raises(PausedError):
        run_job(local_job, folder, "engine.budget.steps=2")
    run_job(local_job, folder, resume=True)
    assert metrics_of(folder) == metrics_of(local_run)
    for step in range(1, 5):
        table = f"samples/step_{step}.parquet"
        assert read_table(folder / table) == read_table(local_run / table)
