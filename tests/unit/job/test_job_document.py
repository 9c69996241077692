"""The model holds every key of the job document with its default and its range."""

from typing import Any

import pytest

from rft.errors import JobError
from tests.unit.job.job_text import JOB, parse

DEFAULTS: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "training_file": "/jobs/train.jsonl",
    "validation_file": "/jobs/valid.jsonl",
    "suffix": "run",
    "seed": 0,
    "metadata": {},
    "integrations": [],
    "method": {
        "type": "reinforcement",
        "reinforcement": {
            "grader": {
                "type": "string_check",
                "name": "exact",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.answer }}",
                "operation": "eq",
            },
            "response_format": None,
            "hyperparameters": {
                "n_epochs": "auto",
                "batch_size": "auto",
                "eval_interval": "auto",
                "eval_samples": "auto",
                "learning_rate_multiplier": "auto",
                "compute_multiplier": "auto",
                "reasoning_effort": "default",
            },
        },
    },
    "engine": {
        "model": {
            "dtype": "auto",
            "device": "auto",
            "quantization": "none",
            "sharding": "none",
            "trust_remote_code": False,
            "chat_template": None,
            "chat_template_kwargs": {},
        },
        "data": {"messages": "messages", "system": None, "fields": {}, "shuffle": True},
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
        "rollout": {
            "engine": "native",
            "vllm": {
                "servers": [],
                "adapter_folder": None,
                "request_seconds": 600.0,
                "tolerance": 0.1,
                "memory_fraction": 0.4,
            },
            "group_size": "auto",
            "temperature": 1.0,
            "top_p": 1.0,
            "max_prompt_tokens": "auto",
            "max_completion_tokens": "auto",
            "stop": [],
            "slots": "auto",
        },
        "training": {
            "learning_rate": "auto",
            "loss": "dapo",
            "advantage_scaling": "group",
            "num_iterations": 1,
            "minibatches": 1,
            "clip_low": 0.2,
            "clip_high": 0.28,
            "kl_coefficient": 0.0,
            "importance_cap": 2.0,
            "mask_truncated": False,
            "resample_zero_signal": 0,
            "max_grad_norm": 1.0,
            "warmup_steps": 0,
            "schedule": "constant",
            "weight_decay": 0.0,
            "betas": [0.9, 0.99],
            "token_budget": "auto",
            "gradient_checkpointing": "auto",
        },
        "evaluation": {
            "at_start": True,
            "temperature": "auto",
            "pass_threshold": 1.0,
            "stop_at": None,
            "patience": None,
        },
        "checkpoints": {"keep": 3, "state_every_steps": 1},
        "grading": {
            "concurrency": "auto",
            "on_exception": "minimum",
            "error_pause_rate": 0.5,
            "pass_threshold_shapes_reward": False,
            "similarity_model": None,
            "python": {"sandbox": "auto", "timeout_seconds": 120, "memory_mb": 2048},
            "endpoint": {"timeout_seconds": 600, "private_hosts": []},
            "judge": {
                "base_url": None,
                "api_key_env": "OPENAI_API_KEY",
                "concurrency": 16,
                "timeout_seconds": 120,
            },
        },
        "tracking": {"report_to": []},
        "budget": {"steps": None, "hours": None},
    },
}


def test_every_key_has_its_default() -> None:
    assert parse().model_dump(mode="json") == DEFAULTS


def test_a_section_may_stand_empty_and_a_null_of_a_request_means_the_default() -> None:
    text = JOB + "suffix:\nseed: null\nmetadata:\nintegrations:\nengine:\n  lora:\n"
    assert parse(text) == parse()
    assert parse(JOB, "method.reinforcement.hyperparameters=") == parse()


def key(path: str) -> str:
    return f"method.reinforcement.hyperparameters.{path}"


@pytest.mark.parametrize(
    ("path", "legal", "illegal"),
    [
        (key("n_epochs"), ["1", "50", "auto"], ["0", "51", "1.5", "true", "'3'"]),
        (key("batch_size"), ["1", "256"], ["0", "257"]),
        (key("eval_interval"), ["1", "1000"], ["0"]),
        (key("eval_samples"), ["1"], ["0"]),
        (key("learning_rate_multiplier"), ["0.1", "2"], ["0", "-1", "true"]),
        (key("compute_multiplier"), ["0.5", "10"], ["0.00001", "10.1"]),
        ("seed", ["0", "2147483647"], ["-1", "2147483648", "1.0"]),
        ("suffix", ["a", "x" * 64, "a-1", "no"], ["''", "x" * 65, "A", "a b", "7"]),
        ("metadata", ["{a: b}", "{a: ''}"], ["{a: 1}", "[a]", "{a: " + "v" * 513 + "}"]),
        ("engine.model.device", ["cpu", "cuda", "cuda:1"], ["gpu", "cuda:", "cuda:x"]),
        ("engine.model.dtype", ["float32", "bfloat16"], ["fp16"]),
        ("engine.model.quantization", ["none", "4bit"], ["8bit", "null"]),
        ("engine.lora.rank", ["1", "256"], ["0", "16.0"]),
        ("engine.lora.dropout", ["0", "0.5"], ["1", "-0.1"]),
        ("engine.lora.targets", ["[q_proj]", "all-linear"], ["[]", "['']", "q_proj"]),
        ("engine.rollout.group_size", ["2", "64"], ["1"]),
        ("engine.rollout.temperature", ["0.1", "1"], ["0", "-1"]),
        ("engine.rollout.top_p", ["1", "0.01"], ["0", "1.01"]),
        ("engine.rollout.stop", ["[]", "[a, b]"], ["a", "['']", "[1]"]),
        ("engine.training.learning_rate", ["1e-4", "1"], ["0", "1.1", "'1e-4'"]),
        ("engine.training.loss", ["grpo", "dapo", "dr_grpo", "cispo", "gspo"], ["ppo"]),
        ("engine.training.advantage_scaling", ["group", "batch", "none"], ["std"]),
        ("engine.training.schedule", ["constant", "linear", "cosine"], ["step"]),
        ("engine.training.clip_low", ["0", "1"], ["-0.1", "1.1"]),
        ("engine.training.clip_high", ["0", "5"], ["-0.1"]),
        ("engine.training.betas", ["[0, 0.5]"], ["[0.9]", "[0.9, 1]", "[1, 2, 3]", "0.9"]),
        ("engine.training.gradient_checkpointing", ["true", "auto"], ["yes", "1"]),
        ("engine.evaluation.temperature", ["0", "1"], ["-1"]),
        ("engine.evaluation.patience", ["1", "null"], ["0"]),
        ("engine.checkpoints.keep", ["1"], ["0"]),
        ("engine.grading.error_pause_rate", ["0", "1"], ["1.5"]),
        ("engine.grading.on_exception", ["minimum", "exclude"], ["skip"]),
        (
            "engine.grading.python.sandbox",
            ["auto", "kernel", "monty", "unsafe-local"],
            ["none", "process"],
        ),
        ("engine.tracking.report_to", ["[wandb, tensorboard]"], ["wandb", "[wandbb]"]),
        ("engine.budget.hours", ["0.5", "4", "null"], ["0"]),
    ],
)
def test_a_key_takes_its_range_and_nothing_else(
    path: str, legal: list[str], illegal: list[str]
) -> None:
    for value in legal:
        parse(JOB, f"{path}={value}")
    for value in illegal:
        with pytest.raises(JobError) as raised:
            parse(JOB, f"{path}={value}")
        (problem,) = raised.value.problems
        assert problem.where.startswith(f"override {path}=") and problem.remedy


def test_metadata_and_integrations_are_bounded() -> None:
    parse(JOB + "metadata: {" + ", ".join(f"k{n}: v" for n in range(16)) + "}\n")
    with pytest.raises(JobError, match=r"a mapping with 17 keys .* a mapping with at most 16"):
        parse(JOB + "metadata: {" + ", ".join(f"k{n}: v" for n in range(17)) + "}\n")
    with pytest.raises(JobError, match="at most 64 characters"):
        parse(JOB + "metadata: {" + "k" * 65 + ": v}\n")
    entry = "{type: wandb, wandb: {project: p, name: null, tags: [a]}}"
    assert parse(JOB + f"integrations: [{entry}]").integrations[0].wandb.tags == ("a",)
    with pytest.raises(JobError, match="at most 5"):
        parse(JOB + f"integrations: [{', '.join([entry] * 6)}]")


def test_nothing_of_a_job_can_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().engine.lora.rank = 8  # type: ignore[misc]
