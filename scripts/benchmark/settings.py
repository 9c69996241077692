"""What both sides are told of a job, read once from rft's resolved document so that nothing can differ."""

from collections.abc import Sequence
from typing import Any, TypedDict

from rft.data import PromptStream
from rft.job import ResolvedJob
from rft.training.setup import Workshop


class PromptRow(TypedDict):
    """A prompt as a conversation, and the row it comes from."""

    messages: list[dict[str, Any]]
    item: dict[str, Any]
    token_ids: list[int]


class JobSettings(TypedDict):
    """A job for a trainer that is not rft."""

    model_folder: str
    seed: int
    batch_size: int
    """Prompts a step."""
    group_size: int
    temperature: float
    max_completion_tokens: int
    learning_rate: float
    loss: str
    advantage_scaling: str
    max_grad_norm: float
    betas: list[float]
    weight_decay: float
    clip_low: float
    clip_high: float
    lora_rank: int
    lora_alpha: float
    train: list[PromptRow]
    """In the order of rft's stream, step after step."""
    valid: list[PromptRow]


def job_settings(workshop: Workshop, num_steps: int) -> JobSettings:
    """The settings of `num_steps` steps; raises ValueError where the two trainers cannot be made equal."""
    job = workshop.job
    refuse_unequal(job)
    training, rollout = job.engine.training, job.engine.rollout
    batch_size = job.hyperparameters.batch_size
    stream = PromptStream(len(workshop.train_prompts), job.seed)
    order = [row for _, row in stream.take(num_steps * batch_size)]
    return JobSettings(
        model_folder=str(workshop.source.folder),
        seed=job.seed,
        batch_size=batch_size,
        group_size=rollout.group_size,
        temperature=rollout.temperature,
        max_completion_tokens=rollout.max_completion_tokens,
        learning_rate=job.effective_learning_rate,
        loss=training.loss,
        advantage_scaling=training.advantage_scaling,
        max_grad_norm=training.max_grad_norm,
        betas=list(training.betas),
        weight_decay=training.weight_decay,
        clip_low=training.clip_low,
        clip_high=training.clip_high,
        lora_rank=job.engine.lora.rank,
        lora_alpha=job.engine.lora.alpha,
        train=_rows(workshop.train_prompts, order),
        valid=_rows(workshop.valid_prompts, range(len(workshop.valid_prompts))),
    )


def refuse_unequal(job: ResolvedJob) -> None:
    """Raises ValueError for what the other side is not told."""
    training, rollout = job.engine.training, job.engine.rollout
    expected = {
        "num_iterations": (training.num_iterations, 1),
        "minibatches": (training.minibatches, 1),
        "kl_coefficient": (training.kl_coefficient, 0.0),
        "warmup_steps": (training.warmup_steps, 0),
        "schedule": (training.schedule, "constant"),
        "mask_truncated": (training.mask_truncated, False),
        "resample_zero_signal": (training.resample_zero_signal, 0),
        "top_p": (rollout.top_p, 1.0),
        "stop": (tuple(rollout.stop), ()),
        "dropout": (job.engine.lora.dropout, 0.0),
        "targets": (job.engine.lora.targets, "all-linear"),
        "dtype": (job.engine.model.dtype, "float32"),
    }
    wrong = {key: found for key, (found, wanted) in expected.items() if found != wanted}
    if wrong:
        raise ValueError(f"the bench compares jobs without {wrong}")


def _rows(prompts: Sequence[Any], order: Sequence[int]) -> list[PromptRow]:
    chosen = [prompts[row] for row in order]
    return [
        PromptRow(
            messages=[dict(message) for message in prompt.example.messages],
            item=dict(prompt.example.item),
            token_ids=list(prompt.token_ids),
        )
        for prompt in chosen
    ]
