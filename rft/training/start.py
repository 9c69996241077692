"""`train`: from a job document to a session that runs, begun or taken up again."""

import contextlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rft.allocator import settle_memory
from rft.data import job_warnings
from rft.errors import DiskError, JobError, PausedError, RunError
from rft.graders import grader_parts
from rft.job import Job, ResolvedJob, dump_job
from rft.models.chat import template_source
from rft.models.effort import effort_kwargs, effort_words
from rft.policy import Policy
from rft.rollout.choose import slow_path_warnings
from rft.rollout.memory import release_memory
from rft.rollout.sampler import Sampler
from rft.runs.documents import read_document
from rft.runs.environment import environment
from rft.runs.fork import forked_after
from rft.runs.layout import (
    FINISHED,
    RUNS_FOLDER,
    RunChoice,
    RunFolder,
    choose_run_folder,
    newest_run,
    refuse_unwritable,
)
from rft.runs.lock import refuse_held
from rft.runs.writer import BEGUN, RunWriter
from rft.training.interrupts import StepAbandoned, StopRequests
from rft.training.model_origin import keep_start_adapter, start_adapter_faults
from rft.training.outcome import finished_outcome
from rft.training.ranks import Ranks
from rft.training.record import Recorder
from rft.training.report import Outcome, Report, Silent
from rft.training.resume import (
    Resumption,
    data_digest,
    keep_settled,
    machine_changes,
    refuse_changed_data,
    refuse_changed_job,
    refuse_changed_model,
    refuse_lost_state,
    same_rewards,
)
from rft.training.session import Parts, Session
from rft.training.setup import (
    Rows,
    Workshop,
    make_collector,
    make_policy,
    make_sampler,
    open_workshop,
    read_rows,
    try_grader,
)
from rft.training.space import refuse_full_disk, space_of, used_bytes
from rft.training.states import Origin, StateStore
from rft.training.trainer import Trainer
from rft.training.update import Updater
from rft.training.watch import Watch


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of `train`."""

    job: Job
    job_text: str
    run_folder: Path | None
    """None: the next free one below `runs_folder`, or the newest of the suffix to resume."""
    resume: bool
    runs_folder: Path

    @property
    def folder_to_resume(self) -> RunFolder | None:
        """The run that there may be to go on with."""
        newest = newest_run(self.job.suffix, self.runs_folder)
        folder = self.run_folder or newest
        return RunFolder(folder) if self.resume and folder is not None else None


def train(
    job: Job,
    *,
    job_text: str,
    run_folder: Path | None,
    resume: bool,
    report: Report | None = None,
    runs_folder: Path = RUNS_FOLDER,
) -> Outcome:
    """Run a job to its end. `run_folder` None means the next free one below `runs_folder`.

    Raises UserError before anything is written when the job cannot run, PausedError when it was
    stopped on request, by a budget or by the disk, and JobFailedError when it could not go on.
    """
    order = Order(job, job_text, run_folder, resume, runs_folder)
    ranks = Ranks(use_cpu=job.engine.model.device == "cpu" or not torch.cuda.is_available())
    report = report if report and ranks.is_main else Silent()
    if resume and (finished := finished_outcome(job.suffix, run_folder, runs_folder)):
        return finished
    if ranks.size > 1 and job.engine.model.device.startswith("cuda:"):
        raise JobError(
            f"{ranks.size} processes cannot share the one device {job.engine.model.device}",
            where="engine.model.device",
            remedy="write cuda: each process then takes its own",
        )
    with ExitStack() as stack:
        stack.callback(ranks.close)
        stop = stack.enter_context(StopRequests(ranks.rank, ranks.size))
        try:
            with stop.abandonable(patience=0):
                session = _open(order, ranks, stop, report, stack)
        except StepAbandoned:
            assert stop.request is not None
            raise PausedError(
                f"{stop.request.reason} while it was starting",
                where=str(run_folder or runs_folder),
                remedy="start or resume it again",
            ) from None
        return session.run()


def _open(
    order: Order, ranks: Ranks, stop: StopRequests, report: Report, stack: ExitStack
) -> Session:
    """Load everything, take the run's lock, and go back to the newest state if there is one."""
    if ranks.is_main:
        refuse_unwritable(order.run_folder or order.runs_folder)
        if order.folder_to_resume:
            refuse_held(order.folder_to_resume.lock)
    rows = read_rows(order.job)
    try_grader(order.job, rows)
    job = keep_settled(order.job, order.folder_to_resume)
    workshop = open_workshop(job, rows, order.runs_folder, order.folder_to_resume)
    policy = make_policy(workshop)
    sampler = make_sampler(workshop, policy, ranks)
    choice = ranks.broadcast(_choose(order) if ranks.is_main else None)
    assert choice is not None
    parts = grader_parts(workshop.job.grader)
    writer = stack.enter_context(RunWriter(choice.folder, parts)) if ranks.is_main else None
    with ExitStack() as starting:
        if writer:
            starting.push(_broken_start(writer))
        machine = _machine(workshop.job, policy, sampler, ranks)
        resumption = _find_state(choice, workshop, machine)
        if writer:
            _refuse_finished(writer)
            _begin_folder(writer, order, workshop, resumption, machine)
            _refuse_small_disk(choice.folder, workshop, policy)
        recorder = None
        if writer:
            recorder = Recorder(writer, report, workshop.job, parts, resumption.origin.total_steps)
            stack.callback(recorder.close)
        session = Session(
            _parts(workshop, ranks, policy, sampler, recorder, stack), RunFolder(choice.folder),
            resumption, stop, report,
        )  # fmt: skip
        session.begin()
        for note in _effort_notes(workshop):
            session.say("info", note)
        warnings = (*slow_path_warnings(policy, sampler), *_warnings_of(workshop.job, rows))
        for warning in warnings:
            session.say("warn", warning)
    return session


def _refuse_finished(writer: RunWriter) -> None:
    """Raise RunError for a run that was ended while this process was loading."""
    status = writer.state.get("status")
    if status in FINISHED:
        raise RunError(
            f"the run is {status} by now", where=str(writer.folder.root), remedy="start another run"
        )


def _choose(order: Order) -> RunChoice:
    return choose_run_folder(order.job.suffix, order.run_folder, order.resume, order.runs_folder)


def _parts(
    workshop: Workshop,
    ranks: Ranks,
    policy: Policy,
    sampler: Sampler,
    recorder: Recorder | None,
    stack: ExitStack,
) -> Parts:
    job = workshop.job
    collector = make_collector(workshop, policy, sampler, stack)
    total_steps = job.steps(len(workshop.train_prompts))
    make_room = partial(release_memory, sampler)
    updater = Updater(job, policy, ranks, total_steps, sampler.is_exact, make_room)
    trainer = Trainer(job, workshop.train_prompts, sampler, collector, updater, ranks)
    watch = Watch(sampler.is_exact and not policy.has_dropout, job.grader)
    return Parts(workshop, ranks, policy, trainer, updater, collector, sampler, watch, recorder)


def _find_state(choice: RunChoice, workshop: Workshop, machine: dict[str, Any]) -> Resumption:
    """The state to go on from, if any, once it is sure that the job may."""
    job, folder = workshop.job, RunFolder(choice.folder)
    total_steps = job.steps(len(workshop.train_prompts))
    digests = workshop.base_digest, workshop.adapter_digest
    origin = Origin(dump_job(job), total_steps, machine, *digests)
    state, faults = StateStore(folder).newest()
    digest = data_digest(workshop)
    if state is None:
        refuse_lost_state(folder, faults)
        return Resumption(None, faults, origin, digest)
    # a copy is free to differ until it has a state of its own
    is_fork = forked_after(folder) == state.progress.step
    refuse_changed_job(job, state.origin.job, folder, is_fork)
    if not is_fork:
        refuse_changed_data(state.progress.data_digest, digest, folder)
    damage = start_adapter_faults(folder)
    refuse_changed_model(state.origin, origin, job, folder, damage)
    faults += damage
    faults += machine_changes(state.origin.machine, machine)
    keeps_ranking = state.progress.data_digest == digest and same_rewards(job, state.origin.job)
    return Resumption(state, faults, origin, digest, is_fork, keeps_ranking or not is_fork)


def _begin_folder(
    writer: RunWriter,
    order: Order,
    workshop: Workshop,
    resumption: Resumption,
    machine: dict[str, Any],
) -> None:
    """Take the run's files back to the state, and write what it is made with."""
    job, before, state = workshop.job, writer.state, resumption.state
    # under another grader, or on other rows, earlier rewards say nothing
    begin = state if resumption.keeps_ranking else None
    writer.rewind(
        begin.positions if begin else {},
        begin.progress.step if begin else -1,
        keeps_results=not resumption.is_fork,
    )
    name = writer.folder.root.name
    step = state.progress.step if state else 0
    if before.get("status") in BEGUN:
        writer.event(
            "warn",
            f"process {before.get('pid')} on {before.get('host')} ended without a word; "
            f"what it did after step {step} is done again",
        )
    message = f"Resuming after step {step}" if state else f"Created fine-tuning job: {name}"
    if resumption.is_fork:
        source = read_document(writer.folder.fork).get("run")
        message = f"Created fine-tuning job: {name}, a copy of {source} after step {step}"
    total_steps = resumption.origin.total_steps
    writer.status("validating_files", message, step=step, total_steps=total_steps)
    files = f"{job.training_file} and validation file: {job.validation_file}"
    writer.event("info", f"Validating training file: {files}")
    if state is None or not writer.folder.job.is_file():
        writer.document("job.yaml", order.job_text)
    keep_start_adapter(workshop.source, writer.folder)
    writer.document("job.resolved.yaml", resumption.origin.job)
    writer.document("env.json", machine)


def _refuse_small_disk(folder: Path, workshop: Workshop, policy: Policy) -> None:
    """Raise DiskError when the disk has no room for what the run does not have yet."""
    num_parameters = sum(parameter.numel() for parameter in policy.parameters().values())
    job, train, valid = workshop.job, workshop.train_prompts, workshop.valid_prompts
    space = space_of(num_parameters, job, train, valid)
    refuse_full_disk(folder, max(space.step, space.run - used_bytes(folder)))


def _machine(job: ResolvedJob, policy: Policy, sampler: Sampler, ranks: Ranks) -> dict[str, Any]:
    """What env.json says."""
    return environment(
        world_size=ranks.size,
        backend=ranks.backend,
        device=str(policy.device),
        num_threads=torch.get_num_threads(),
        memory=settle_memory() if policy.device.type == "cpu" else "as by default",
        sandbox=job.engine.grading.python.sandbox,
        **sampler.facts,
    )


def _effort_notes(workshop: Workshop) -> list[str]:
    """What a reasoning effort came to, where one is asked for."""
    job, effort = workshop.job, workshop.job.hyperparameters.reasoning_effort
    if effort == "default":
        return []
    offered = effort_kwargs(template_source(workshop.tokenizer), effort)
    given = job.engine.model.chat_template_kwargs
    kwargs = {name: given[name] for name in offered}
    return [effort_words(effort, kwargs, job.engine.rollout.max_completion_tokens)]


def _warnings_of(job: ResolvedJob, rows: Rows) -> list[str]:
    return list(job_warnings(job, rows.train, rows.valid))


def _broken_start(writer: RunWriter) -> Callable[[type[BaseException] | None, Any, Any], None]:
    """An exit callback: a run whose parts could not be put together is a failed one, or a paused one
    when it was asked to stop."""

    def record(kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        state = writer.state
        is_mine = state.get("status") in BEGUN and state.get("pid") == os.getpid()
        if kind is None or not is_mine:
            return
        with contextlib.suppress(DiskError):  # then the run is seen to have no process any more
            if issubclass(kind, (StepAbandoned, KeyboardInterrupt, PausedError)):
                writer.status("paused", "stopped while it was starting")
            elif issubclass(kind, DiskError):
                writer.free_reserve()
                writer.status("paused", str(error), "error")
            else:
                writer.status("failed", str(error), "error", error={"message": str(error)})

    return record
