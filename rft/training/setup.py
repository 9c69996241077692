"""From a job document to everything a run needs: rows, model, tokenizer, sampler, grader."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rft.allocator import settle_memory
from rft.data import load_all_rows
from rft.errors import GraderError, JobError, ModelError
from rft.graders import best_tier, local_judges, open_grader
from rft.graders.judge import StandInJudge
from rft.graders.sample import make_sample
from rft.job import Job, JobFacts, ModelSettings, ResolvedJob, completion_limit, resolve_job
from rft.models import (
    ModelSource,
    choose_device_and_dtype,
    context_length,
    count_parameters,
    encode_prompts,
    end_token_ids,
    load_config,
    load_model,
    load_tokenizer,
)
from rft.models.chat import ChatTemplate, template_source
from rft.models.effort import effort_kwargs
from rft.packing import prefix_length
from rft.policy import LoraShape, Policy, continued_policy, new_policy
from rft.rollout.choose import open_sampler
from rft.rollout.collect import Collector
from rft.rollout.sampler import Sampler
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm_open import open_vllm
from rft.runs.environment import available_cores
from rft.runs.layout import RunFolder
from rft.sharding import is_source, num_processes, shard_base
from rft.training.judges import judges_beside
from rft.training.model_origin import adapter_digest, base_digest, find_job_model
from rft.training.ranks import Ranks
from rft.training.sizes import activation_bytes_per_token, kv_bytes_per_token
from rft.types import Example, Prompt


@dataclass(frozen=True, slots=True)
class Rows:
    """The job's data, read and checked."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Workshop:
    """A loaded model and the job resolved for it."""

    job: ResolvedJob
    source: ModelSource
    base_digest: str
    adapter_digest: str
    """Of the adapter that the job continues from; empty for none."""
    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel
    end_token_ids: tuple[int, ...]
    train_prompts: tuple[Prompt, ...]
    valid_prompts: tuple[Prompt, ...]

    @property
    def chat_template(self) -> ChatTemplate:
        """As prompts are rendered by it."""
        return ChatTemplate(self.tokenizer, self.job.engine.model.chat_template_kwargs)


def read_rows(job: Job) -> Rows:
    """Read both files and check the grader's templates against every row; all faults at once."""
    return Rows(*load_all_rows(job))


def try_grader(job: Job, rows: Rows) -> None:
    """Grade an empty answer once, so that a grader that can never work is found before a model is loaded.

    Raises GraderError when it gives no grade at all.
    """
    # what a sample's own fault earns is not asked here: an empty answer may well be one
    stand_ins = {model: StandInJudge() for model in local_judges(job.grader)}
    settings = replace(job.grading_settings, on_exception="minimum", local_judges=stand_ins)
    with open_grader(job.grader, settings) as grader:
        wants_json = job.completion_schema is not None
        sample = make_sample("", tools=rows.train[0].tools, wants_json=wants_json)
        grade = grader.grade(sample, rows.train[0].item)
        grader.check()
    if grade.reward is None:
        details = "; ".join(f"{kind}: {text.strip()}" for kind, text in grade.errors.items())
        raise GraderError(
            f"the grader cannot grade an empty answer to the first training row: {details[-1500:]}",
            where="method.reinforcement.grader",
            remedy="mend it, and try it with rft grade",
        )


def render(
    job: Job, rows: Rows, source: ModelSource
) -> tuple[PreTrainedTokenizerBase, tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Tokenizer, training prompts and validation prompts; no weights are loaded."""
    settings = job.engine.model
    tokenizer = load_tokenizer(source, settings)
    longest_allowed = _prompt_limit(job, load_config(source, settings))
    kwargs = chat_kwargs(job, tokenizer)

    def encode(examples: Sequence[Example], name: str) -> tuple[Prompt, ...]:
        return tuple(
            encode_prompts(
                tokenizer,
                examples,
                chat_template_kwargs=kwargs,
                max_prompt_tokens=longest_allowed,
                source_name=name,
            )
        )

    train, valid = encode(rows.train, job.training_file), encode(rows.valid, job.validation_file)
    return tokenizer, train, valid


def chat_kwargs(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the chat template is handed: what the reasoning effort comes to, and the job's own before it."""
    effort = job.hyperparameters.reasoning_effort
    own = dict(job.engine.model.chat_template_kwargs)
    return {**effort_kwargs(template_source(tokenizer), effort), **own}


def open_workshop(
    job: Job, rows: Rows, runs_folder: Path, begun: RunFolder | None = None
) -> Workshop:
    """Find and load the model, render the prompts, and replace every `auto` of the job; `begun`: the run that
    the job goes on with."""
    _refuse_lone_shard(job)
    source = find_job_model(job.model, runs_folder, begun)
    tokenizer, train, valid = render(job, rows, source)
    device, dtype = choose_device_and_dtype(job.engine.model)
    if device == "cpu":
        settle_memory()
    base, digest = load_base(source, job.engine.model, dtype, device)
    facts = JobFacts(
        num_training_rows=len(train),
        num_parameters=count_parameters(base),
        device=device,
        dtype=dtype,
        context_length=context_length(base.config),
        longest_prompt=max(len(prompt.token_ids) for prompt in (*train, *valid)),
        mean_prompt=round(fmean(len(prompt.token_ids) for prompt in train)),
        kv_bytes_per_token=kv_bytes_per_token(base.config, base.dtype),
        activation_bytes_per_token=activation_bytes_per_token(base.config, base.dtype),
        num_cores=available_cores(),
        sandbox=best_tier(),
    )
    if source.adapter is not None:
        job = with_lora_of(job, source.adapter)
    job = _with_chat_kwargs(job, chat_kwargs(job, tokenizer))
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    return Workshop(
        resolve_job(job, facts),
        source,
        digest,
        adapter_digest(source.adapter),
        tokenizer,
        base,
        ends,
        train,
        valid,
    )


def _with_chat_kwargs(job: Job, kwargs: dict[str, Any]) -> Job:
    """As the resolved job has them, so that whoever samples from the run later renders as it did."""
    model = job.engine.model.model_copy(update={"chat_template_kwargs": kwargs})
    return job.model_copy(update={"engine": job.engine.model_copy(update={"model": model})})


def load_base(
    source: ModelSource, settings: ModelSettings, dtype: str, device: str
) -> tuple[PreTrainedModel, str]:
    """The frozen base model, whole in each process or sharded over them, and its digest.

    To be sharded it is read by rank 0 alone, through the host memory of its machine; collective then.
    """
    if settings.sharding == "none":
        base = load_model(source, settings, dtype, device)
        return base, base_digest(base)
    base = load_model(source, settings, dtype, "cpu" if is_source() else "meta")
    digest = [base_digest(base) if is_source() else ""]
    broadcast_object_list(digest)
    return shard_base(base, device), digest[0]


def _refuse_lone_shard(job: Job) -> None:
    if job.engine.model.sharding != "none" and num_processes() == 1:
        raise JobError(
            "sharding: fsdp divides the base among processes, and there is only one",
            where="engine.model.sharding",
            remedy="start the job with --processes N, or set it to none",
        )


def with_lora_of(job: Job, adapter: Path) -> Job:
    """The job with `engine.lora` as the adapter has it that it continues from."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    targets = config["target_modules"]
    shape = {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config["lora_dropout"],
        "targets": tuple(sorted(targets)) if isinstance(targets, list) else "all-linear",
    }
    lora = job.engine.lora.model_copy(update=shape)
    engine = job.engine.model_copy(update={"lora": lora})
    return job.model_copy(update={"engine": engine})


def make_policy(workshop: Workshop) -> Policy:
    """The policy a job starts with: a new adapter, or the one it continues from."""
    job = workshop.job
    checkpointing = job.engine.training.gradient_checkpointing
    lora = job.engine.lora
    shape = LoraShape(lora.rank, lora.alpha, lora.dropout, lora.targets)
    with known_family(workshop.base):
        if workshop.source.adapter is not None:
            return continued_policy(workshop.base, workshop.source.adapter, checkpointing)
        return new_policy(workshop.base, shape, job.seed, checkpointing)


def make_sampler(workshop: Workshop, policy: Policy, ranks: Ranks | None = None) -> Sampler:
    """vLLM where the job asks for it, else the fastest sampler that has shown that it agrees with the
    model's plain forward pass. Every process of `ranks` must make one."""
    transcriber = Transcriber(workshop.tokenizer, workshop.end_token_ids)
    job = workshop.job
    if job.engine.rollout.engine == "vllm":
        longest = max(len(p.token_ids) for p in (*workshop.train_prompts, *workshop.valid_prompts))
        with known_family(workshop.base):
            return open_vllm(policy, transcriber, job, workshop.source.folder, longest, ranks)
    sampler = open_sampler(policy, transcriber, job.engine.rollout.slots)
    sampler.share_prefix(job_prefix(workshop))
    return sampler


def job_prefix(workshop: Workshop) -> tuple[int, ...]:
    """What all prompts of the job begin with."""
    prompts = [prompt.token_ids for prompt in (*workshop.train_prompts, *workshop.valid_prompts)]
    return prompts[0][: prefix_length(prompts)]


@contextmanager
def known_family(base: PreTrainedModel) -> Iterator[None]:
    """Anything a model does that the engine does not expect is the model family's, said in words."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{type(base).__name__} does not fit the engine: {type(error).__name__}: {error}",
            where="model",
            remedy="this model family is not supported yet",
        ) from error


def make_collector(
    workshop: Workshop, policy: Policy, sampler: Sampler, stack: ExitStack
) -> Collector:
    """Sampler, grader and judges together; the grader's processes end with `stack`."""
    job = workshop.job
    judges = judges_beside(policy, job, workshop.chat_template, workshop.end_token_ids)
    settings = replace(job.grading_settings, local_judges=judges)
    return Collector(
        sampler,
        stack.enter_context(open_grader(job.grader, settings)),
        job.engine.grading.concurrency,
        wants_json=job.completion_schema is not None,
        judges=tuple(judges.values()),
    )


def _prompt_limit(job: Job, config: PretrainedConfig) -> int:
    """`max_prompt_tokens`, or what the model's context leaves beside a completion."""
    rollout = job.engine.rollout
    completion = completion_limit(job)
    room = context_length(config) - completion
    if room < 1:
        raise JobError(
            f"a completion of {completion} tokens leaves no room for a prompt in the "
            f"model's context of {context_length(config)}",
            where="engine.rollout.max_completion_tokens",
            remedy="take fewer",
        )
    asked = rollout.max_prompt_tokens
    return min(room, asked) if isinstance(asked, int) else room
