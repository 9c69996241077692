"""The judges of this process that a job's graders name."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from transformers import PreTrainedTokenizerBase

from rft.errors import JobError
from rft.graders import local_judges
from rft.job import Job, ModelSettings
from rft.models import (
    choose_device_and_dtype,
    context_length,
    end_token_ids,
    find_model,
    load_model,
    load_tokenizer,
)
from rft.models.chat import ChatTemplate, template_source
from rft.models.effort import effort_kwargs
from rft.policy import BareModel, LoraShape, Policy, new_policy
from rft.rollout.choose import open_sampler
from rft.rollout.judge import LocalJudge
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.transcribe import Transcriber
from rft.rollout.weigh import Weigher
from rft.runs.layout import RUNS_FOLDER

BASE = "local:base"
NUM_SLOTS = 32
"""Questions answered side by side."""


def judges_beside(
    policy: Policy, job: Job, template: ChatTemplate, ends: tuple[int, ...]
) -> dict[str, LocalJudge]:
    """Those of a job whose policy is loaded: its base answers as `local:base`, others are loaded beside it."""
    judges = {}
    for name in local_judges(job.grader):
        if name == BASE:
            judges[name] = base_judge(policy, template, ends)
        else:
            model = name.removeprefix("local:")
            judges[name] = load_judge(name, model, own_settings(job.engine.model))
    return judges


def judges_alone(job: Job) -> dict[str, LocalJudge]:
    """The same where no policy is loaded, as when a single sample is graded."""
    return {
        name: load_judge(name, job.model, job.engine.model)
        if name == BASE
        else load_judge(name, name.removeprefix("local:"), own_settings(job.engine.model))
        for name in local_judges(job.grader)
    }


def own_settings(settings: ModelSettings) -> ModelSettings:
    """What of the policy's settings holds for another model too."""
    kept = {key: getattr(settings, key) for key in ("device", "dtype", "trust_remote_code")}
    return ModelSettings(**kept)


def base_judge(policy: Policy, policys: ChatTemplate, ends: tuple[int, ...]) -> LocalJudge:
    """The policy's base without its adapter, by the sampler that serves its family."""
    template = quiet_template(policys.tokenizer, policys.kwargs)
    transcriber = Transcriber(template.tokenizer, ends)
    length = context_length(policy.base.config)
    if policy.why_unpacked is not None:
        sampler = PlainSampler(policy, transcriber, NUM_SLOTS)
        return LocalJudge(
            BASE, sampler, Weigher(policy, None), template, length, policy.adapter_off
        )
    bare = BareModel(policy)
    native = NativeSampler(bare, transcriber, NUM_SLOTS)
    answering = nullcontext if policy.uses_merged else policy.adapter_off
    weigher = Weigher(bare, native.invariance)
    return LocalJudge(BASE, native, weigher, template, length, answering)


def load_judge(name: str, model: str, settings: ModelSettings) -> LocalJudge:
    """A model of its own: any that a job's `model` may name, without an adapter.

    Raises UserError where it cannot be had.
    """
    source = find_model(model, runs_folder=RUNS_FOLDER)
    if source.adapter is not None and name != BASE:
        raise JobError(
            f"the judge {name} is an adapter, and judges are whole models",
            where="method.reinforcement.grader",
            remedy="export it merged (rft export --format merged) and name that folder",
        )
    tokenizer = load_tokenizer(source, settings)
    device, dtype = choose_device_and_dtype(settings)
    base = load_model(source, settings, dtype, device)
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    policy = new_policy(base, LoraShape(1), 0)
    sampler = open_sampler(policy, Transcriber(tokenizer, ends), NUM_SLOTS)
    template = quiet_template(tokenizer, settings.chat_template_kwargs)
    invariance = sampler.invariance if isinstance(sampler, NativeSampler) else None
    weigher = Weigher(policy, invariance)
    return LocalJudge(name, sampler, weigher, template, context_length(base.config))


def quiet_template(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> ChatTemplate:
    """The chat template with thinking switched off where it can be: a judge's limit is for its reply."""
    off = effort_kwargs(template_source(tokenizer), "low")
    return ChatTemplate(tokenizer, {**kwargs, **off})
