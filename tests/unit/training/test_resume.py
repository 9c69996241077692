"""Which changes of the job document and of the machine a resumed run accepts."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import JOB, make_job

from rft.errors import RunError
from rft.job import Job, ResolvedJob, dump_job, parse_job
from rft.runs.environment import environment
from rft.runs.layout import RunFolder
from rft.training.resume import (
    EPOCHS,
    flattened,
    is_forkable,
    is_safe,
    keep_settled,
    machine_changes,
    refuse_changed_data,
    refuse_changed_job,
    refuse_lost_state,
    same_rewards,
)

PARAMETERS = "method.reinforcement.hyperparameters"

BEGUN = dump_job(make_job(f"{PARAMETERS}.eval_interval=5"))
"""The resolved document that a run's state holds."""


def refuse(job: ResolvedJob, folder: Path, begun: str = BEGUN, is_fork: bool = False) -> None:
    refuse_changed_job(job, begun, RunFolder(folder), is_fork)


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
    refuse(job, tmp_path)


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
        ("engine.data.shuffle=false", "engine.data.shuffle: True → False"),
    ],
)
def test_other_changes_are_refused(tmp_path: Path, override: str, said: str) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", override)
    with pytest.raises(RunError) as refusal:
        refuse(job, tmp_path)
    assert said in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_all_differences_are_said_at_once(tmp_path: Path) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", "seed=8", "engine.lora.alpha=8")
    with pytest.raises(RunError, match=r"engine\.lora\.alpha: 32 → 8; seed: 7 → 8"):
        refuse(job, tmp_path)


def test_the_same_job_is_accepted(tmp_path: Path) -> None:
    refuse(make_job(f"{PARAMETERS}.eval_interval=5"), tmp_path)


def test_a_refusal_says_how_to_go_on(tmp_path: Path) -> None:
    job = make_job(f"{PARAMETERS}.eval_interval=5", "seed=8")
    with pytest.raises(RunError) as refusal:
        refuse(job, tmp_path)
    (problem,) = refusal.value.problems
    assert problem.what == "the job differs from the one this run was begun with: seed: 7 → 8"
    assert problem.where == str(tmp_path)
    assert "rft runs resume RUN KEY=VALUE --fork" in problem.remedy


def epochs(num: int, schedule: str = "constant") -> ResolvedJob:
    return make_job(
        f"{PARAMETERS}.eval_interval=5", f"{EPOCHS}={num}", f"engine.training.schedule={schedule}"
    )


def test_more_epochs_are_accepted_and_fewer_are_not(tmp_path: Path) -> None:
    begun = dump_job(epochs(2))
    refuse(epochs(2), tmp_path, begun)
    refuse(epochs(3), tmp_path, begun)
    with pytest.raises(RunError) as refusal:
        refuse(epochs(1), tmp_path, begun)
    assert refusal.value.problems[0].what.endswith(f": {EPOCHS}: 2 → 1 (more are possible)")
    refuse(epochs(1), tmp_path, begun, is_fork=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_other_epochs_where_the_rate_falls(tmp_path: Path, schedule: str) -> None:
    begun = dump_job(epochs(2, schedule))
    refuse(epochs(2, schedule), tmp_path, begun)
    for num in (1, 3):
        with pytest.raises(RunError, match=f"{EPOCHS}: 2 → {num}"):
            refuse(epochs(num, schedule), tmp_path, begun)


def test_where_the_rate_falls_more_epochs_are_not_offered(tmp_path: Path) -> None:
    with pytest.raises(RunError) as refusal:
        refuse(epochs(1, "linear"), tmp_path, dump_job(epochs(2, "linear")))
    assert refusal.value.problems[0].what.endswith(f"begun with: {EPOCHS}: 2 → 1")


@pytest.mark.parametrize(
    "override", ["engine.grading.concurrency=7", "engine.grading.error_pause_rate=0.1"]
)
def test_settings_that_no_reward_feels_keep_the_ranking_of_a_fork(override: str) -> None:
    assert same_rewards(make_job(f"{PARAMETERS}.eval_interval=5", override), BEGUN)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model", False),
        ("engine.lora", False),
        ("engine.lora.rank", False),
        ("engine.lora.targets", False),
        ("engine.model", True),
        ("engine.model.dtype", True),
        ("models", True),
        ("engine.loraplus", True),
        ("seed", True),
        ("engine.training.learning_rate", True),
        (f"{PARAMETERS}.batch_size", True),
        ("method.reinforcement.grader.operation", True),
    ],
)
def test_what_a_fork_may_change(key: str, expected: bool) -> None:
    assert is_forkable(key) is expected


def test_a_fork_keeps_only_the_shape_of_the_weights(tmp_path: Path) -> None:
    changes = [
        "seed=8",
        "engine.training.learning_rate=0.02",
        f"{PARAMETERS}.batch_size=4",
        "method.reinforcement.grader.operation=ilike",
    ]
    refuse(make_job(*changes), tmp_path, is_fork=True)
    with pytest.raises(RunError) as refusal:
        refuse(make_job(*changes, "engine.lora.rank=4"), tmp_path, is_fork=True)
    (problem,) = refusal.value.problems
    assert problem.what.endswith("begun with: engine.lora.rank: 16 → 4")
    assert problem.remedy == "start another run: a fork keeps the weights' shape"
    with pytest.raises(RunError, match=r"model: '.*tiny' → '.*other'"):
        refuse(make_job("model=other"), tmp_path, is_fork=True)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=8", True),
        ("engine.training.learning_rate=0.02", True),
        (f"{PARAMETERS}.eval_interval=1", True),
        ("method.reinforcement.grader.operation=ilike", False),
        ("method.reinforcement.grader.reference='{{ item.other }}'", False),
        ("engine.grading.on_exception=exclude", False),
        ("engine.evaluation.temperature=0.5", False),
        ("engine.data.shuffle=false", True),
        ("engine.data.system=Be brief.", False),
    ],
)
def test_what_changes_the_meaning_of_a_reward(override: str, expected: bool) -> None:
    assert same_rewards(make_job(f"{PARAMETERS}.eval_interval=5", override), BEGUN) is expected


def test_another_type_of_grader_has_other_rewards() -> None:
    """Not one key of it need be in both documents."""
    other = (
        "method.reinforcement.grader={type: python, name: exact, "
        'source: "def grade(sample, item):\\n    return 1.0\\n"}'
    )
    job = make_job(f"{PARAMETERS}.eval_interval=5", other)
    assert not same_rewards(job, BEGUN)
    assert not same_rewards(make_job(f"{PARAMETERS}.eval_interval=5"), dump_job(job))


def written(folder: Path, text: str = BEGUN) -> RunFolder:
    run = RunFolder(folder)
    run.resolved_job.write_text(text)
    return run


def job_of(*overrides: str) -> Job:
    return parse_job(JOB, name="job.yaml", folder=Path("/jobs"), overrides=overrides)


def interval(job: Job) -> Any:
    return job.method.reinforcement.hyperparameters.eval_interval


def test_an_interval_that_is_auto_stays_what_it_was(tmp_path: Path) -> None:
    job = job_of()
    assert interval(job) == "auto"
    kept = keep_settled(job, written(tmp_path))
    assert interval(kept) == 5
    assert interval(job) == "auto"  # an argument is never written to
    hyperparameters = job.method.reinforcement.hyperparameters
    expected = hyperparameters.model_dump() | {"eval_interval": 5}
    assert kept.method.reinforcement.hyperparameters.model_dump() == expected
    assert kept.model_dump(exclude={"method"}) == job.model_dump(exclude={"method"})
    grader = job.method.reinforcement.grader
    assert kept.method.reinforcement.grader == grader


@pytest.mark.parametrize("overrides", [(), (f"{PARAMETERS}.eval_interval=3",)])
def test_nothing_else_is_settled(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    job = job_of(*overrides)
    assert keep_settled(job, None) == job
    assert keep_settled(job, RunFolder(tmp_path)) == job
    assert keep_settled(job, written(tmp_path, "model: tiny\n")) == job
    if overrides:
        assert keep_settled(job, written(tmp_path)) == job


@pytest.mark.parametrize("content", [b"model: [\n", b"\xff\xfe"])
def test_a_damaged_document_settles_nothing(tmp_path: Path, content: bytes) -> None:
    """The state has a whole one; this is for people."""
    job = job_of()
    RunFolder(tmp_path).resolved_job.write_bytes(content)
    assert keep_settled(job, RunFolder(tmp_path)) == job


MACHINE = {
    "python": "3.11.7",
    "rft": "0.1.0",
    "libraries": {"torch": "2.9", "numpy": "2.3", "nltk": "3"},
    "platform": "Linux-6.1",
    "processor": "A",
    "num_cores": 2,
    "variables": {"OMP_NUM_THREADS": "1"},
    "world_size": 1,
    "device": "cpu",
    "num_threads": 2,
}


def test_the_same_machine_is_no_change() -> None:
    assert machine_changes(MACHINE, MACHINE) == []
    here = environment(world_size=1, device="cpu", num_threads=2)
    assert machine_changes(json.loads(json.dumps(here)), here) == []


def test_what_may_differ_without_a_word() -> None:
    """Neither the kernel nor the number of cores reaches into the numbers; threads do."""
    assert machine_changes(MACHINE, MACHINE | {"platform": "Linux-6.2", "num_cores": 64}) == []


def test_every_change_of_the_machine_is_one_warning() -> None:
    now = MACHINE | {
        "rft": "0.2.0",
        "world_size": 2,
        "device": "cuda",
        "num_threads": 4,
        "processor": "B",
        "variables": {},
        "libraries": {"torch": "2.10", "numpy": "2.3", "vllm": "0.9"},
    }
    assert machine_changes(MACHINE, now) == [
        "this is not where the run was begun, so its numbers may differ in their last digits: "
        "rft 0.1.0 → 0.2.0, processor A → B, num_threads 2 → 4, world_size 1 → 2, "
        "device cpu → cuda, variables {'OMP_NUM_THREADS': '1'} → {}, "
        "nltk 3 → None, torch 2.9 → 2.10, vllm None → 0.9"
    ]
    assert machine_changes({}, {}) == []


def test_changed_rows_are_refused(tmp_path: Path) -> None:
    refuse_changed_data("a", "a", RunFolder(tmp_path))
    with pytest.raises(RunError, match="rows differ from those this run was begun with"):
        refuse_changed_data("a", "b", RunFolder(tmp_path))


def test_finished_steps_without_a_state_are_not_thrown_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    refuse_lost_state(folder, [])
    with pytest.raises(RunError, match=r"no state to go on from; latest\.json is damaged"):
        refuse_lost_state(folder, ["latest.json is damaged"])
    folder.checkpoint(3).mkdir(parents=True)
    with pytest.raises(RunError, match="finished steps but no state"):
        refuse_lost_state(folder, [])


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
