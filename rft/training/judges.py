"""The judges of this process that a job's graders name."""

from contextlib import nullcontext

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
from rft.models.chat import ChatTemplate
from rft.policy import BareModel, LoraShape, Policy, new_policy
from rft.rollout.choose import open_sampler
from rft.rollout.judge import LocalJudge
from rft.rollout.native import NativeSampler
from rft.rollout.plain import PlainSampler
from rft.rollout.transcribe import Transcriber
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
            judges[name] = load_judge(name, name.removeprefix("local:"), job.engine.model)
    return judges


def judges_alone(job: Job) -> dict[str, LocalJudge]:
    """The same where no policy is loaded, as when a single sample is graded."""
    return {
        name: load_judge(
            name,
            job.model if name == BASE else name.removeprefix("local:"),
            job.engine.model,
        )
        for name in local_judges(job.grader)
    }


def base_judge(policy: Policy, template: ChatTemplate, ends: tuple[int, ...]) -> LocalJudge:
    """The policy's base without its adapter, by the sampler that serves its family."""
    transcriber = Transcriber(template.tokenizer, ends)
    length = context_length(policy.base.config)
    if policy.why_unpacked is not None:
        sampler = PlainSampler(policy, transcriber, NUM_SLOTS)
        return LocalJudge(BASE, sampler, template, length, policy.adapter_off)
    native = NativeSampler(BareModel(policy), transcriber, NUM_SLOTS)
    answering = nullcontext if policy.uses_merged else policy.adapter_off
    return LocalJudge(BASE, native, template, length, answering)


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
    kept = {key: getattr(settings, key) for key in ("device", "dtype", "trust_remote_code")}
    own = ModelSettings(**kept)
    tokenizer = load_tokenizer(source, own)
    device, dtype = choose_device_and_dtype(own)
    base = load_model(source, own, dtype, device)
    ends = end_token_ids(base.config, base.generation_config, tokenizer)
    policy = new_policy(base, LoraShape(1), 0)
    sampler = open_sampler(policy, Transcriber(tokenizer, ends), NUM_SLOTS)
    return LocalJudge(name, sampler, ChatTemplate(tokenizer, {}), context_length(base.config))
