"""A whole job of a model family that the fast path does not serve, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.jobs import write_job
from tests.launch import run_rft
from tests.tiny import save_tiny_model


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return write_job(folder, save_tiny_model(folder / "model", "bloom"), num_rows=12)


def test_it_trains_exactly_and_says_that_it_is_slow(job_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_rft("train", str(job_file), "--run-dir", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    said = "the fast sampler and the packed training pass do not serve BloomForCausalLM"
    assert "sampler plain" in told and said in told

    environment = json.loads((run / "env.json").read_text())
    assert environment["sampler"] == "plain" and environment["bitwise"] is False
    assert "disagree" in environment["why_plain"]
    warnings = [e["message"] for e in json_lines(run / "events.jsonl") if e["level"] == "warn"]
    assert sum(message.startswith(said) for message in warnings) == 1

    steps = [row for row in json_lines(run / "metrics.jsonl") if row["step"] > 0]
    assert len(steps) == 3
    for row in steps:
        assert row["rollout/logprob_gap_max"] < 5e-5
        assert row["optimizer/update_norm"] > 0

    base = AutoModelForCausalLM.from_pretrained(job_file.parent / "model").eval()
    token_ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = base(input_ids=token_ids).logits
        checkpoint = next((run / "checkpoints").glob("step_*"))
        after = PeftModel.from_pretrained(base, str(checkpoint))(input_ids=token_ids).logits
    assert 1e-4 < (after - before).abs().max() < 10


def test_validation_says_it_beforehand(job_file: Path, tmp_path: Path) -> None:
    done = run_rft("validate", str(job_file), "--samples", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["sampler"] == "plain"
    assert "BloomForCausalLM" in document["warnings"][0]
