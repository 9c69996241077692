"""What a job may not ask of the engine vllm."""

import pytest

from rft.errors import JobError
from rft.job import ResolvedJob
from tests.jobs import resolved_job

VLLM = "engine.rollout.engine=vllm"


def job_of(*overrides: str) -> ResolvedJob:
    return resolved_job(*overrides)


def test_servers_are_a_list_of_urls_and_survive_resolving() -> None:
    job = job_of(VLLM, "engine.rollout.vllm.servers=[http://localhost:8000, https://b.example/v]")
    assert job.engine.rollout.vllm.servers == ("http://localhost:8000", "https://b.example/v")
    assert job_of().engine.rollout.vllm.servers == ()


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["engine.rollout.top_p=0.9"], "engine.rollout.top_p"),
        (["engine.lora.rank=513"], "engine.lora.rank"),
        (["engine.rollout.temperature=2.1"], "engine.rollout.temperature"),
        (["engine.rollout.temperature=0.005"], "engine.rollout.temperature"),
        (["engine.evaluation.temperature=3"], "engine.evaluation.temperature"),
        (["engine.rollout.vllm.servers=[http://a, http://a/]"], "engine.rollout.vllm.servers"),
        (["engine.rollout.vllm.servers=[localhost:8000]"], "engine.rollout.vllm.servers"),
        (
            ["engine.rollout.vllm.servers=[http://a]", "engine.rollout.vllm.memory_fraction=0.5"],
            "engine.rollout.vllm.memory_fraction",
        ),
        (["engine.rollout.vllm.request_seconds=5"], "engine.rollout.vllm.request_seconds"),
        (["engine.model.quantization=4bit"], "engine.model.quantization"),
    ],
)
def test_what_vllm_cannot_do_is_refused(overrides: list[str], where: str) -> None:
    with pytest.raises(JobError, match=where):
        job_of(VLLM, *overrides)


def test_what_it_can_do_is_not() -> None:
    job = job_of(VLLM, "engine.lora.rank=512", "engine.rollout.temperature=2")
    assert job.engine.evaluation.temperature == 0


def test_what_a_server_can_do_is_not() -> None:
    job = job_of(
        VLLM,
        "engine.rollout.vllm.servers=[http://a]",
        "engine.rollout.vllm.request_seconds=5",
        "engine.model.quantization=4bit",
    )
    assert job.engine.rollout.vllm.request_seconds == 5
    assert job_of(VLLM, "engine.rollout.vllm.memory_fraction=0.5").engine.rollout.vllm.servers == ()


def test_its_settings_without_it_are_refused() -> None:
    with pytest.raises(JobError, match="settings of vllm with the engine native"):
        job_of("engine.rollout.vllm.servers=[http://a]")
