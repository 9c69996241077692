"""Dotted overrides laid over a document."""

import pytest

from rft.errors import JobError
from rft.job.overrides import MAX_OVERRIDES
from rft.job.places import one_line
from tests.unit.job.job_text import JOB, parse


def test_an_override_makes_the_sections_the_file_leaves_out() -> None:
    job = parse(JOB, "engine.training.learning_rate=1e-4", "engine.lora.rank=4")
    assert job.engine.training.learning_rate == 1e-4
    assert job.engine.lora.rank == 4


def test_a_value_is_yaml_and_the_last_override_wins() -> None:
    job = parse(
        JOB,
        "suffix=first",
        "suffix=second",
        "engine.rollout.stop=[a, '=']",
        "engine.rollout.temperature=0.5",
        "training_file=hf://owner/name?config=main&split=train",
        "engine.lora={rank: 2}",
        "metadata.note=no",
    )
    assert (job.suffix, job.engine.rollout.stop) == ("second", ("a", "="))
    assert job.training_file == "hf://owner/name?config=main&split=train"
    assert (job.engine.lora.rank, job.engine.lora.alpha) == (2, 32)
    assert job.engine.rollout.temperature == 0.5
    assert job.metadata == {"note": "no"}


def test_an_override_mends_what_the_file_has_wrong() -> None:
    assert parse(JOB + "seed: x\nseed: 3\n", "seed=7").seed == 7


def test_an_empty_value_is_null() -> None:
    assert (
        parse(JOB + "engine: {budget: {steps: 3}}", "engine.budget.steps=").engine.budget.steps
        is None
    )


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("engine.trainig.lr=3", "unknown key `trainig` in engine", "did you mean `training`?"),
        (
            "engine.training.learning_rte=3",
            "unknown key `learning_rte` in engine.training",
            "did you mean `learning_rate`?",
        ),
        (
            "lora.rank=3",
            "unknown key `lora`",
            "it belongs at engine.lora",
        ),
        (
            "model.name=x",
            "model holds 'smollm2-135m-instruct', so nothing can be set",
            "name a key",
        ),
        ("seed", "not an override", "write key.sub=value"),
        ("=3", "not an override", "write key.sub=value"),
        ("engine..lora=3", "not an override", "write key.sub=value"),
        (".".join("a" * 100) + "=3", "not an override", "write key.sub=value"),
        ("seed=\udc80", "not UTF-8", "write the override in UTF-8"),
        ("se\udc80ed=3", "not UTF-8", "write the override in UTF-8"),
        ('metadata={"a": "\udc80"}', "not UTF-8", "write the override in UTF-8"),
        ("engine.lora={", "not valid YAML", "check the quotes"),
        ("engine.lora={rank: 1, rank: 2}", "`rank` stands twice", "keep one of them"),
        ("seed=.nan", ".nan is not a finite number", "write a finite number"),
        ("seed='8'", "seed is the text '8'", "remove the quotes"),
    ],
)
def test_a_wrong_override_is_told_as_it_was_written(override: str, what: str, remedy: str) -> None:
    with pytest.raises(JobError) as raised:
        parse(JOB, override)
    (problem,) = raised.value.problems
    assert problem.what.startswith(what)
    assert problem.where.startswith(one_line(f"override {override[:60]}"))
    assert problem.remedy.startswith(remedy)


def test_there_may_be_many_overrides_but_not_too_many() -> None:
    assert parse(JOB, *["seed=3"] * MAX_OVERRIDES).seed == 3
    with pytest.raises(JobError) as raised:
        parse(JOB, *["seed=3"] * MAX_OVERRIDES, "seed=4", "seed=5")
    (problem,) = raised.value.problems
    assert problem.what == "there are 202 overrides, and at most 200 are read"
    assert problem.where == "override seed=4"
