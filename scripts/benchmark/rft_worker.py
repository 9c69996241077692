"""rft's side: its own trainer, driven step by step.

Two things differ from `rft train`, in the modes that ask for them: the learning rate is 0, and groups
without signal are computed too (`AllGroupsTrainer`).
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rft.allocator import settle_memory
from rft.job import ResolvedJob, load_job
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SampleRequest
from rft.rollout.transcribe import Transcriber
from rft.runs.environment import environment
from rft.runs.layout import RUNS_FOLDER
from rft.training.advantages import advantages
from rft.training.evaluation import evaluate
from rft.training.ranks import Ranks
from rft.training.setup import (
    job_prefix,
    make_collector,
    make_policy,
    make_sampler,
    open_workshop,
    read_rows,
)
from rft.training.trainer import Trainer, rollout_plan
from rft.training.update import Update, Updater
from rft.types import Completion, Group
from scripts.benchmark.pipes import Channel, peak_memory
from scripts.benchmark.settings import JobSettings, job_settings

TIE_BREAKER = 1e-6


class AllGroupsTrainer(Trainer):
    """Computes groups without signal as well: their advantages become ±1e-6 in turn."""

    def train(
        self, step: int, groups: Sequence[Group], values: Sequence[tuple[float | None, ...]]
    ) -> list[Update]:
        return super().train(step, groups, [tie_broken(row) for row in values])


def tie_broken(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """The advantages of a group, ±1e-6 in turn where all of them are zero."""
    if any(values):
        return tuple(values)
    signs = (TIE_BREAKER, -TIE_BREAKER)
    return tuple(None if v is None else signs[i % 2] for i, v in enumerate(values))


class Side:
    """A job, opened once."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(
        self,
        job: str,
        overrides: Sequence[str] = (),
        learns: bool = True,
        all_groups: bool = False,
        full_length: bool = False,
    ) -> None:
        """Load everything. `full_length`: no token ends a completion, so that all reach the limit."""
        document = load_job(Path(job), overrides)
        workshop = open_workshop(document, read_rows(document), RUNS_FOLDER)
        self._job = workshop.job if learns else without_learning(workshop.job)
        self._workshop = replace(workshop, job=self._job)
        self._policy = make_policy(self._workshop)
        self._sampler = make_sampler(self._workshop, self._policy)
        if full_length:
            transcriber = Transcriber(self._workshop.tokenizer, ())
            slots = self._job.engine.rollout.slots
            self._sampler = NativeSampler(self._policy, transcriber, slots)
            self._sampler.share_prefix(job_prefix(self._workshop))
        self._ranks = Ranks(use_cpu=True)
        self._collector = make_collector(self._workshop, self._policy, self._sampler, self._stack)
        total_steps = self._job.steps(len(self._workshop.train_prompts))
        updater = Updater(self._job, self._policy, self._ranks, total_steps, self._sampler.is_exact)
        kind = AllGroupsTrainer if all_groups else Trainer
        prompts = self._workshop.train_prompts
        self._trainer = kind(
            self._job, prompts, self._sampler, self._collector, updater, self._ranks
        )
        self._groups: dict[int, list[Group]] = {}
        self._sampler.refresh()

    def settings(self, num_steps: int) -> JobSettings:
        """For the other side."""
        return job_settings(self._workshop, num_steps)

    def facts(self) -> dict[str, Any]:
        """What env.json says, and the choices of the resolved job that cost time or memory."""
        engine = self._job.engine
        chosen = {
            "slots": engine.rollout.slots,
            "token_budget": engine.training.token_budget,
            "gradient_checkpointing": engine.training.gradient_checkpointing,
            "sandbox": engine.grading.python.sandbox,
        }
        memory = settle_memory()
        return {**environment(memory=memory, **self._sampler.facts), "resolved": chosen}

    def step(self, step: int) -> dict[str, Any]:
        """One whole step, from prompts to the refreshed sampler."""
        began = time.perf_counter()
        record = self._trainer.step(step)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "sampling_seconds": record.seconds["sampling"],
            "training_seconds": record.seconds["training"],
            "sync_seconds": record.seconds["sync"],
            **told(record.groups),
        }

    def sample(self, step: int) -> dict[str, Any]:
        """The completions of a step's prompts, not graded."""
        plan = rollout_plan(self._job, step)
        draws = self._trainer.stream.take(self._job.hyperparameters.batch_size)
        prompts = [self._workshop.train_prompts[row].token_ids for _, row in draws]
        requests = [
            SampleRequest(ids, plan.group_size, plan.seed, Purpose.TRAIN, step, ordinal)
            for ids, (ordinal, _) in zip(prompts, draws, strict=True)
        ]
        calls, spent = self._sampler.calls.copy(), self._sampler.spent
        began = time.perf_counter()
        sampled = list(self._sampler.sample(requests, plan.sampling))
        seconds = time.perf_counter() - began
        made = self._sampler.calls - calls
        parts = {key: value - spent.get(key, 0) for key, value in self._sampler.spent.items()}
        return {
            "seconds": seconds,
            **lengths([one.completion for one in sampled]),
            "calls": [[stage, rows, times] for (stage, rows), times in sorted(made.items())],
            "spent": parts,
            "head_rows": self._sampler.facts["min_rows"],
            "prompts": [list(ids) for ids in prompts],
        }

    def record(self, step: int) -> dict[str, Any]:
        """Sample and grade a step's groups, keep them for `train`, and tell them."""
        groups, _ = self._trainer.rollouts(step)
        self._groups[step] = groups
        values = advantages(groups, self._job.engine.training.advantage_scaling)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return {
            "prompt_ids": [list(g.prompt.token_ids) for g in groups for _ in g.rollouts],
            "completion_ids": [list(r.completion.token_ids) for r in rollouts],
            "texts": [r.completion.output_text for r in rollouts],
            "rewards": [r.grade.reward for r in rollouts],
            "advantages": [value for row in values for value in row],
            **told(groups),
        }

    def train(self, step: int) -> dict[str, Any]:
        """Forward, backward and optimizer on the groups that `record` kept."""
        groups = self._groups[step]
        values = advantages(groups, self._job.engine.training.advantage_scaling)
        began = time.perf_counter()
        self._trainer.train(step, groups, values)
        return {"seconds": time.perf_counter() - began}

    def evaluate(self, step: int) -> dict[str, Any]:
        """Greedy on the held-out rows, as the job says."""
        prompts = self._workshop.valid_prompts
        evaluation = evaluate(step, self._job, prompts, self._collector, self._ranks)
        return {"valid_reward_mean": evaluation.reward_mean, "seconds": evaluation.seconds}

    def save_adapter(self, folder: str) -> None:
        """For an engine that loads adapters."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._policy.save_adapter(Path(folder))

    def peak_memory(self) -> int:
        return peak_memory()

    def close(self) -> None:
        self._stack.close()


def without_learning(job: ResolvedJob) -> ResolvedJob:
    """The job at learning rate 0, which a document may not ask for."""
    training = job.engine.training.model_copy(update={"learning_rate": 0.0})
    return job.model_copy(update={"engine": job.engine.model_copy(update={"training": training})})


def told(groups: Sequence[Group]) -> dict[str, Any]:
    """What a step is compared by beside its time; an ungraded rollout counts 0."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [rollout.grade.reward or 0.0 for rollout in rollouts]
    return {
        **lengths([rollout.completion for rollout in rollouts]),
        "reward_mean": sum(rewards) / len(rewards),
        "zero_signal_fraction": sum(not group.has_signal for group in groups) / len(groups),
    }


def lengths(completions: Sequence[Completion]) -> dict[str, Any]:
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "num_tokens": num_tokens,
        "num_completions": len(completions),
        "completion_tokens_mean": num_tokens / len(completions),
    }


def main() -> None:
    side = Side()
    names = (
        "start", "settings", "facts", "step", "sample", "record", "train", "evaluate",
        "save_adapter", "peak_memory",
    )  # fmt: skip
    Channel().serve({name: getattr(side, name) for name in names})
    side.close()


if __name__ == "__main__":
    main()
