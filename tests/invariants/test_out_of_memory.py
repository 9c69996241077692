"""When memory runs out the step is done again in smaller micro-batches, and the run remembers them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rft.errors import MachineError, PausedError
from rft.job import load_job
from rft.packing import PackedBatch
from rft.policy import Policy, Scored
from rft.runs.reader import open_run
from rft.training.sizes import prompt_copy_cost
from rft.training.start import train
from tests.jobs import write_job
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return write_job(folder, save_tiny_model(folder / "model"), num_rows=12)


def run_job(job_file: Path, folder: Path, *overrides: str, resume: bool = False) -> str:
    job = load_job(job_file, ("engine.evaluation.at_start=false", *overrides))
    return train(job, job_text=job_file.read_text(), run_folder=folder, resume=resume).status


def run_short_of_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """The allocator fails, after the model's pass, for micro-batches beyond `limit`; gives their sizes."""
    score, sizes = Policy.score, []

    def short(policy: Policy, batch: PackedBatch, temperature: float) -> Scored:
        scored = score(policy, batch, temperature)
        if torch.is_grad_enabled():
            # as the budget counts: what each completion keeps of its prompt too
            prefix, spans = batch.layout.prefix_length, batch.layout.spans
            num_copies = sum((prefix + s.prompt_length) * len(s.completion_lengths) for s in spans)
            cost = prompt_copy_cost(policy.base.config, policy.base.dtype)
            sizes.append(batch.num_tokens + int(cost * num_copies))
            if sizes[-1] > limit:
                torch.empty(10**17, dtype=torch.uint8)
        return scored

    monkeypatch.setattr(Policy, "score", short)
    return sizes


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in rows]


def token_budget(folder: Path, step: int) -> int:
    document = json.loads((folder / "states" / f"step_{step}" / "progress.json").read_text())
    budget: int = document["progress"]["token_budget"]
    return budget


def test_a_run_short_of_memory_is_one_that_began_with_the_smaller_budget(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "short", "engine.training.token_budget=180"
    with monkeypatch.context() as patch:
        sizes = run_short_of_memory(patch, limit=100)
        with pytest.raises(PausedError):
            run_job(job_file, folder, whole, "engine.budget.steps=1")
    budget = token_budget(folder, 1)
    assert 100 < sizes[0] <= 180 and budget == sizes[0] // 2 and max(sizes[1:]) <= budget
    half = f"engine.training.token_budget={budget}"
    assert run_job(job_file, tmp_path / "half", half) == "succeeded"
    warnings = [
        e["message"] for e in open_run(str(folder), tmp_path).events() if e["level"] == "warn"
    ]
    said = f"memory ran out: micro-batches now hold {budget} tokens"
    assert [text for text in warnings if "memory" in text] == [
        f"{said}, and the work was done again"
    ]
    # the resumed run goes on with the smaller budget, without another failure to teach it
    assert run_job(job_file, folder, whole, resume=True) == "succeeded"
    assert token_budget(folder, 3) == budget
    assert timeless(folder) == timeless(tmp_path / "half")


def test_a_run_that_cannot_train_one_completion_fails_and_can_be_resumed(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        run_short_of_memory(patch, limit=10)
        with pytest.raises(MachineError, match="single completion"):
            run_job(job_file, folder)
    state = json.loads((folder / "state.json").read_text())
    assert (
        state["status"] == "failed" and "gradient_checkpointing=true" in state["error"]["message"]
    )
    checkpointing = "engine.training.gradient_checkpointing=true"
    assert run_job(job_file, folder, checkpointing, resume=True) == "succeeded"
