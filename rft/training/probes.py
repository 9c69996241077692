"""Looking without training: check a job, measure a model, talk to it."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rft.allocator import settle_memory
from rft.data import job_warnings
from rft.job import Job, ModelSettings, read_job
from rft.models import (
    ModelSource,
    choose_device_and_dtype,
    encode_prompts,
    end_token_ids,
    find_model,
    load_model,
    load_tokenizer,
)
from rft.models.loading import context_length
from rft.policy import LoraShape, Policy, continued_policy, new_policy
from rft.rollout.choose import open_sampler, slow_path_warnings
from rft.rollout.collect import Collector
from rft.rollout.memory import release_memory
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampler, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.runs.layout import RUNS_FOLDER, RunFolder
from rft.training.baseline import measure_baseline
from rft.training.estimate import time_document, warnings_of
from rft.training.evaluation import evaluate as run_evaluation
from rft.training.memory import (
    available_memory_bytes,
    held_memory_bytes,
    largest_step_bytes,
    peak_memory_bytes,
)
from rft.training.metrics import evaluation_metrics
from rft.training.ranks import Ranks
from rft.training.setup import (
    Workshop,
    make_collector,
    make_policy,
    make_sampler,
    open_workshop,
    read_rows,
    render,
    try_grader,
)
from rft.training.trainer import Trainer
from rft.training.update import Updater
from rft.training.watch_metrics import canary_metrics
from rft.types import Example, Prompt

NUM_MEASURED_STEPS = 2


def validate(
    job: Job, samples: int | None, estimate: bool, runs_folder: Path = RUNS_FOLDER
) -> dict[str, Any]:
    """Check data, grader and model; with `samples`, what the untrained model earns; with `estimate`,
    time and memory of the job from two measured steps. Raises UserError with all that is wrong."""
    rows = read_rows(job)
    try_grader(job, rows)
    source = find_model(job.model, runs_folder=runs_folder)
    _, train_prompts, valid_prompts = render(job, rows, source)
    longest = max(len(prompt.token_ids) for prompt in (*train_prompts, *valid_prompts))
    found: dict[str, Any] = {
        "is_valid": True,
        "model": {"name": source.name, "folder": str(source.folder)},
        "num_training_rows": len(rows.train),
        "num_validation_rows": len(rows.valid),
        "longest_prompt_tokens": longest,
        "warnings": job_warnings(job, rows.train, rows.valid),
    }
    if samples is None and not estimate:
        return found
    with ExitStack() as stack:
        workshop = open_workshop(job, rows, runs_folder)
        policy = make_policy(workshop)
        # before the sampler is examined: what that frees is kept
        held = held_memory_bytes(policy.device)
        sampler = make_sampler(workshop, policy)
        collector = make_collector(workshop, policy, sampler, stack)
        found["sampler"] = sampler.facts.get("sampler")
        found["warnings"] = [*slow_path_warnings(policy, sampler), *found["warnings"]]
        if samples is not None:
            job, prompts = workshop.job, workshop.train_prompts
            found["samples"] = measure_baseline(job, prompts, collector, samples)
        if estimate:
            ranks = Ranks(use_cpu=policy.device.type == "cpu")
            stack.callback(ranks.close)
            found["estimate"] = _estimated(workshop, policy, sampler, collector, ranks, held)
    return found


def evaluate(model: str, job: Job, runs_folder: Path = RUNS_FOLDER) -> dict[str, Any]:
    """One evaluation of `model` (`base` = the job's own) on the job's validation rows."""
    rows = read_rows(job)
    if model != "base":
        job = job.model_copy(update={"model": model})
    with ExitStack() as stack:
        workshop = open_workshop(job, rows, runs_folder)
        ranks = Ranks(workshop.job.engine.model.device == "cpu")
        stack.callback(ranks.close)
        policy = make_policy(workshop)
        collector = make_collector(workshop, policy, make_sampler(workshop, policy), stack)
        evaluation = run_evaluation(0, workshop.job, workshop.valid_prompts, collector, ranks)
    metrics = evaluation_metrics(evaluation, workshop.job.engine.evaluation.pass_threshold)
    metrics |= canary_metrics(evaluation.canaries)
    return {"model": model, "num_validation_rows": len(rows.valid), **metrics}


def generate(
    model: str,
    prompt: str,
    *,
    greedy: bool = False,
    temperature: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    system: str | None = None,
    runs_folder: Path = RUNS_FOLDER,
) -> str:
    """The answer of a model (base, adapter folder, RUN or RUN@step) to one user message."""
    source = find_model(model, runs_folder=runs_folder)
    settings, own_system = settings_of(source)
    system = own_system if system is None else system
    tokenizer = load_tokenizer(source, settings)
    device, dtype = choose_device_and_dtype(settings)
    if device == "cpu":
        settle_memory()
    base = load_model(source, settings, dtype, device)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    (encoded,) = encode_prompts(
        tokenizer,
        [Example(0, tuple(messages), {})],
        chat_template_kwargs=dict(settings.chat_template_kwargs),
        max_prompt_tokens=context_length(base.config) - max_tokens,
        source_name="the prompt",
    )
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    policy = (
        continued_policy(base, source.adapter)
        if source.adapter
        else new_policy(base, LoraShape(1), 0)
    )
    sampler = open_sampler(policy, Transcriber(tokenizer, ends), num_slots=1)
    request = SampleRequest(encoded.token_ids, 1, seed, Purpose.GENERATE, 0, 0)
    sampling = SamplingSettings(0.0 if greedy else temperature, 1.0, max_tokens)
    (sampled,) = sampler.sample([request], sampling)
    return sampled.completion.text


def settings_of(source: ModelSource) -> tuple[ModelSettings, str | None]:
    """How the run that trained an adapter rendered its prompts; the defaults for any other model."""
    if source.adapter is None:
        return ModelSettings(), None
    document = RunFolder(source.adapter.parent.parent).resolved_job
    if not document.is_file():
        return ModelSettings(), None
    reading = read_job(document)
    if reading.job is None or not (
        reading.says("engine", "model") and reading.says("engine", "data")
    ):
        assert reading.error is not None
        raise reading.error
    job = reading.job  # whether its grader can run here is nothing to a model that only answers
    here = {"device": "auto", "dtype": "auto"}
    return job.engine.model.model_copy(update=here), job.engine.data.system


def spread(prompts: Sequence[Prompt], count: int) -> Sequence[Prompt]:
    """So many of the prompts, evenly apart; all where there are not more."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _estimated(
    workshop: Workshop,
    policy: Policy,
    sampler: Sampler,
    collector: Collector,
    ranks: Ranks,
    held: int,
) -> dict[str, Any]:
    """Seconds and memory of the whole job, from two real steps and the share of an evaluation; `held`: bytes in
    use before any sampling."""
    job, total_steps = workshop.job, workshop.job.steps(len(workshop.train_prompts))
    make_room = partial(release_memory, sampler)
    updater = Updater(job, policy, ranks, total_steps, sampler.is_exact, make_room)
    trainer = Trainer(job, workshop.train_prompts, sampler, collector, updater, ranks)
    records = [trainer.step(step) for step in range(1, NUM_MEASURED_STEPS + 1)]
    prompts = spread(workshop.valid_prompts, job.engine.rollout.slots)
    # canaries are few whatever the number of rows, and graded while others are sampled
    evaluation = run_evaluation(0, job, prompts, collector, ranks, num_canary_rows=0)
    num_rows = len(workshop.train_prompts), len(workshop.valid_prompts)
    peak, available = peak_memory_bytes(policy.device), available_memory_bytes(policy.device)
    largest = max(peak, largest_step_bytes(workshop, policy, held))
    return {
        **time_document(job, records, evaluation, *num_rows),
        "peak_memory_bytes": peak,
        "largest_step_bytes": largest,
        "available_memory_bytes": available,
        "warnings": warnings_of(records, largest, available),
    }
