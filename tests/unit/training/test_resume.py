"""Which changes of the job document a resumed run accepts."""

from pathlib import Path

import pytest
from made import make_job

from rft.errors import RunError
from rft.job import dump_job
from rft.runs.layout import RunFolder
from rft.training.resume import flattened, is_safe, refuse_changed_job

PARAMETERS = "method.reinforcement.hyperparameters"


def begun(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.resolved_job.write_text(dump_job(make_job(f"{PARAMETERS}.eval_interval=5")))
    return folder


@pytest.mark.parametrize(
    "override",
    [
        "seed=7",
        "metadata.note=later",
        f"{PARAMETERS}.n_epochs=3",
        "engine.budget.hours=1.5",
        "engine.budget.steps=3",
        "engine.evaluation.stop_at=0.9",
        "engine.evaluation.patience=2",
        "engine.checkpoints.keep=5",
        "engine.checkpoints.state_every_steps=2",
        "engine.grading.concurrency=7",
        "engine.grading.error_pause_rate=0.1",
        "engine.tracking.report_to=[tensorboard]",
        "engine.training.token_budget=500",
        "engine.training.gradient_checkpointing=true",
        "engine.rollout.slots=2",
    ],
)
def test_changes_that_finished_steps_do_not_feel(tmp_path: Path, override: str) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", override)
    refuse_changed_job(job, begun(tmp_path))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=8", "seed: 7 → 8"),
        ("engine.training.learning_rate=0.02", "engine.training.learning_rate: 0.01 → 0.02"),
        ("engine.lora.rank=4", "engine.lora.rank: 16 → 4"),
        (f"{PARAMETERS}.batch_size=4", f"{PARAMETERS}.batch_size: 2 → 4"),
        ("method.reinforcement.grader.operation=ilike", "grader.operation: 'eq' → 'ilike'"),
        ("engine.evaluation.pass_threshold=0.5", "engine.evaluation.pass_threshold: 1.0 → 0.5"),
        ("engine.data.fields.prompt=say hi", "engine.data.fields.prompt: None → 'say hi'"),
        (
            "engine.model.chat_template_kwargs.enable_thinking=false",
            "engine.model.chat_template_kwargs.enable_thinking: None → False",
        ),
        ("engine.grading.on_exception=exclude", "on_exception: 'minimum' → 'exclude'"),
    ],
)
def test_other_changes_are_refused(tmp_path: Path, override: str, said: str) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", override)
    with pytest.raises(RunError) as refusal:
        refuse_changed_job(job, begun(tmp_path))
    assert said in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_all_differences_are_said_at_once(tmp_path: Path) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", "seed=8", "engine.lora.alpha=8")
    with pytest.raises(RunError, match=r"engine\.lora\.alpha: 32 → 8; seed: 7 → 8"):
        refuse_changed_job(job, begun(tmp_path))


def test_a_run_without_a_resolved_job_takes_any(tmp_path: Path) -> None:
    refuse_changed_job(make_job(), RunFolder(tmp_path))


def test_the_same_job_is_accepted(tmp_path: Path) -> None:
    refuse_changed_job(make_job(f"{PARAMETERS}.eval_interval=5"), begun(tmp_path))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("engine.budget", True),
        ("engine.budget.steps", True),
        ("engine.budgets", False),
        ("engine", False),
        ("engine.evaluation.temperature", False),
        ("metadata.seed", True),
    ],
)
def test_safe_keys(key: str, expected: bool) -> None:
    assert is_safe(key) is expected


def test_flattened() -> None:
    nested = {"a": 1, "b": {"c": [1, {"d": 2}], "e": {"f": None}}, "g": {}}
    assert flattened(nested) == {"a": 1, "b.c": [1, {"d": 2}], "b.e.f": None, "g": {}}
