"""A whole job: from the document to the summary, with its run folder kept true on the way."""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rft.data import job_warnings
from rft.errors import JobError, JobFailedError, PausedError, Problem, RftError
from rft.graders import grader_parts
from rft.job import Job, ResolvedJob, dump_job
from rft.policy import Policy
from rft.rollout.choose import slow_path_warnings
from rft.rollout.collect import Collector
from rft.rollout.memory import num_slots, shrink_to
from rft.rollout.sampler import Sampler
from rft.runs.environment import environment
from rft.runs.layout import RUNS_FOLDER, RunChoice, RunFolder, choose_run_folder, refuse_unwritable
from rft.runs.writer import RunWriter
from rft.training.endings import budget_spent, early_end, grading_failure
from rft.training.evaluation import Evaluation, evaluate
from rft.training.interrupts import stop_requests
from rft.training.optimization import load_optimizer_tensors, optimizer_tensors
from rft.training.outcome import finished_outcome, outcome_of
from rft.training.ranks import Ranks
from rft.training.record import Recorder
from rft.training.report import Outcome, Report, Silent
from rft.training.resume import (
    data_digest,
    refuse_changed_data,
    refuse_changed_job,
    refuse_lost_state,
)
from rft.training.setup import (
    Workshop,
    make_collector,
    make_policy,
    make_sampler,
    open_workshop,
    read_rows,
    try_grader,
)
from rft.training.states import Progress, State, StateStore, smaller_sizes
from rft.training.trainer import StepRecord, Trainer
from rft.training.update import Updater
from rft.training.watch import Watch
from rft.types import Group, Prompt


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
    stopped on request or by a budget, and JobFailedError when it could not go on.
    """
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
    if ranks.is_main:
        refuse_unwritable(run_folder or runs_folder)
    rows = read_rows(job)
    try_grader(job, rows)
    with ExitStack() as stack:
        stack.callback(ranks.close)
        workshop = open_workshop(job, rows, runs_folder)
        policy = make_policy(workshop)
        sampler = make_sampler(workshop, policy, ranks)
        choice = ranks.broadcast(
            choose_run_folder(job.suffix, run_folder, resume, runs_folder)
            if ranks.is_main
            else None
        )
        assert choice is not None
        session = Session.open(workshop, policy, sampler, ranks, report, choice, job_text, stack)
        for warning in (
            *slow_path_warnings(policy, sampler),
            *job_warnings(job, rows.train, rows.valid),
        ):
            session.say("warn", warning)
        return session.run()


class Session:
    """One process's part in a running job."""

    def __init__(
        self,
        workshop: Workshop,
        ranks: Ranks,
        folder: RunFolder,
        policy: Policy,
        trainer: Trainer,
        updater: Updater,
        collector: Collector,
        sampler: Sampler,
        watch: Watch,
        recorder: Recorder | None,
        report: Report,
    ):
        self.job: ResolvedJob = workshop.job
        self.folder = folder
        self._valid_prompts: tuple[Prompt, ...] = workshop.valid_prompts
        self._ranks = ranks
        self._policy = policy
        self._trainer = trainer
        self._updater = updater
        self._collector = collector
        self._watch = watch
        self._recorder = recorder
        self._report = report
        self._states = StateStore(folder)
        self._total_steps = workshop.job.steps(len(workshop.train_prompts))
        self._data_digest = data_digest(workshop)
        self._sampler = sampler
        self._progress = self._sized(Progress(0, 0, self._data_digest, None, None, None, 0, {}))

    @classmethod
    def open(
        cls,
        workshop: Workshop,
        policy: Policy,
        sampler: Sampler,
        ranks: Ranks,
        report: Report,
        choice: RunChoice,
        job_text: str,
        stack: ExitStack,
    ) -> "Session":
        """Take the run's lock, put the parts together, and go back to the newest state if there is one."""
        job, folder = workshop.job, RunFolder(choice.folder)
        parts = grader_parts(job.grader)
        writer = stack.enter_context(RunWriter(choice.folder, parts)) if ranks.is_main else None
        if choice.action == "resume":
            refuse_changed_job(job, folder)
        if writer:
            stack.push(_failed_start(writer))
        total_steps = job.steps(len(workshop.train_prompts))
        if writer:
            writer.status("validating_files", total_steps=total_steps)
            if choice.action == "start":
                writer.document("job.yaml", job_text)
            writer.document("job.resolved.yaml", dump_job(job))
        collector = make_collector(job, sampler, stack)
        updater = Updater(job, policy, ranks, total_steps, sampler.is_exact)
        trainer = Trainer(job, workshop.train_prompts, sampler, collector, updater, ranks)
        recorder = None
        if writer:
            writer.document(
                "env.json",
                environment(
                    world_size=ranks.size,
                    backend=ranks.backend,
                    device=str(policy.device),
                    num_threads=torch.get_num_threads(),
                    sandbox=job.engine.grading.python.sandbox,
                    **sampler.facts,
                ),
            )
            recorder = Recorder(writer, report, job, parts, total_steps)
            stack.callback(recorder.close)
        session = cls(
            workshop, ranks, folder, policy, trainer, updater, collector, sampler,
            Watch(sampler.is_exact and not policy.has_dropout, job.grader), recorder, report,
        )  # fmt: skip
        session._begin(choice, workshop)
        sampler.refresh()
        return session

    def run(self) -> Outcome:
        """Evaluate, step, evaluate … until the steps are done or something ends the run early."""
        try:
            with stop_requests(is_told=self._recorder is not None) as stop_requested:
                message = self._loop(stop_requested)
        except PausedError:
            raise
        except KeyboardInterrupt:
            self._end("paused", "interrupted; the step in progress is lost")
            raise PausedError(
                "interrupted", where=str(self.folder.root), remedy="resume it"
            ) from None
        except Exception as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            if isinstance(error, RftError):
                raise
            raise JobFailedError(
                f"step {self._progress.step + 1} failed: {type(error).__name__}: {error}",
                where=str(self.folder.root),
                remedy="go on with --resume once the cause is mended",
            ) from error
        return self._end("succeeded", message)

    def say(self, level: str, message: str) -> None:
        """An event of the run."""
        if self._recorder:
            self._recorder.say(level, message)

    def _begin(self, choice: RunChoice, workshop: Workshop) -> None:
        """Start from nothing, or from the newest undamaged state."""
        state, faults = self._states.newest()
        if state is None:
            refuse_lost_state(self.folder, faults)
        if state:
            refuse_changed_data(state.progress.data_digest, self._data_digest, self.folder)
        writer = self._recorder.writer if self._recorder else None
        if writer and self._recorder:
            writer.rewind(state.positions if state else {})
            self._recorder.checkpoints.forget_after(state.progress.step if state else 0)
            self._states.forget_after(state.progress.step if state else 0)
        for fault in faults:
            self.say("warn", f"{fault}; the one before it is taken")
        if state:
            self._policy.load_adapter(state.adapter)
            parameters = self._policy.parameters()
            load_optimizer_tensors(self._updater.optimizer, parameters, state.optimizer)
            self._trainer.go_to(state.progress.stream_cursor)
            self._watch.counters.update(state.progress.watch)
            self._stay_small(state.progress)
            self._progress = self._sized(state.progress)
            self.say("info", f"Resuming after step {state.progress.step}")
        else:
            files = f"{self.job.training_file} and validation file: {self.job.validation_file}"
            self.say("info", f"Created fine-tuning job: {self.folder.root.name}")
            self.say("info", f"Validating training file: {files}")
            self.say("info", "Files validated, moving job to queued state")
        if writer:
            writer.status("running", step=self._progress.step, total_steps=self._total_steps)
        self.say("info", "Fine-tuning job started")
        if workshop.source.adapter is not None:
            self.say("info", "Continuing from an adapter: engine.lora is what that adapter has")
        self._report.started(self._facts(workshop))

    def _facts(self, workshop: Workshop) -> dict[str, Any]:
        job = self.job
        return {
            "run_folder": str(self.folder.root),
            "model": job.model,
            "device": str(self._policy.device),
            "dtype": job.engine.model.dtype,
            "sampler": self._sampler.facts.get("sampler"),
            "num_processes": self._ranks.size,
            "total_steps": self._total_steps,
            "first_step": self._progress.step + 1,
            "batch_size": job.hyperparameters.batch_size,
            "group_size": job.engine.rollout.group_size,
            "num_training_rows": len(workshop.train_prompts),
            "num_validation_rows": len(workshop.valid_prompts),
        }

    def _loop(self, stop_requested: Callable[[], bool]) -> str:
        """Gives why the job is done."""
        began = time.monotonic()
        if self._progress.step == 0 and self._progress.baseline is None:
            self._start()
        for step in range(self._progress.step + 1, self._total_steps + 1):
            self._pause_if_due(stop_requested(), (time.monotonic() - began) / 3600)
            record = self._trainer.step(step)
            is_due = step % self.job.hyperparameters.eval_interval == 0 or step == self._total_steps
            evaluation = self._evaluate(step) if is_due else None
            failures = self._grading_failures((*record.groups, *record.replaced), evaluation)
            self._advance(record, evaluation, is_sound=not failures)
            self._pause_on_grading_failures(step, failures)
            reason = early_end(self.job, evaluation, self._progress.evaluations_since_best)
            if reason:
                self._save_state()
                return reason
        return "The job has successfully completed"

    def _start(self) -> None:
        """The evaluation of the untrained model, step 0."""
        if not self.job.engine.evaluation.at_start:
            return
        evaluation = self._evaluate(0)
        if self._recorder:
            measured = self._watch.measure(None, evaluation)
            flat = self._recorder.step(None, evaluation, measured)
            self._warn(self._watch.evaluation(evaluation, flat))
        self._pause_on_grading_failures(0, self._grading_failures((), evaluation))
        reward = evaluation.reward_mean
        before = self._progress
        self._progress = self._sized(replace(before, baseline=reward, last_reward=reward))
        self._warn(smaller_sizes(before, self._progress))

    def _evaluate(self, step: int) -> Evaluation:
        return evaluate(step, self.job, self._valid_prompts, self._collector, self._ranks)

    def _advance(self, record: StepRecord, evaluation: Evaluation | None, is_sound: bool) -> None:
        """Write what happened: lines, samples, checkpoint, and last the state they lead to.

        A step whose grading failed leaves no state: a resumed run does it again.
        """
        before, best = self._progress, self._progress.best_reward
        since_best = before.evaluations_since_best
        if evaluation and evaluation.can_rank:
            is_new_best = best is None or evaluation.reward_mean > best
            best = evaluation.reward_mean if is_new_best else best
            since_best = 0 if is_new_best else since_best + 1
        flat: dict[str, Any] = {}
        if self._recorder:
            measured = self._watch.measure(record, evaluation)
            flat = self._recorder.step(record, evaluation, measured)
            self._warn(self._watch.step(record, flat))
        if evaluation and self._recorder:
            self._warn(self._watch.evaluation(evaluation, flat))
            if self._recorder.checkpoints.save(self._policy, evaluation, flat):
                self.say("info", f"Checkpoint created at step {record.step}")
                self._recorder.writer.status("running", best=self._best())
        progress = Progress(
            step=record.step,
            stream_cursor=self._trainer.stream.cursor,
            data_digest=self._data_digest,
            baseline=before.baseline,
            last_reward=evaluation.reward_mean if evaluation else before.last_reward,
            best_reward=best,
            evaluations_since_best=since_best,
            watch=dict(self._watch.counters),
        )
        self._progress = self._sized(progress)
        self._warn(smaller_sizes(before, self._progress))
        is_due = record.step % self.job.engine.checkpoints.state_every_steps == 0
        if is_sound and (is_due or record.step == self._total_steps):
            self._save_state()

    def _save_state(self) -> None:
        if not self._recorder:
            return
        writer = self._recorder.writer
        writer.status("running", step=self._progress.step, best=self._best())
        parameters = self._policy.parameters()
        self._states.save(
            State(
                progress=self._progress,
                adapter=self._policy.adapter_tensors(),
                optimizer=optimizer_tensors(self._updater.optimizer, parameters),
                positions=writer.positions(),
            )
        )

    def _sized(self, progress: Progress) -> Progress:
        """The progress with what want of memory may have halved."""
        settings, budget, slots = (
            self.job.engine,
            self._updater.passes.token_budget,
            num_slots(self._sampler),
        )
        return replace(
            progress,
            token_budget=budget if budget < settings.training.token_budget else None,
            slots=slots if slots is not None and slots < settings.rollout.slots else None,
        )

    def _stay_small(self, progress: Progress) -> None:
        """Go on with what the run had halved, or less if the job now asks for less."""
        if progress.token_budget is not None:
            budget = min(progress.token_budget, self._updater.passes.token_budget)
            self._updater.passes.token_budget = budget
        if progress.slots is not None:
            shrink_to(self._sampler, progress.slots)

    def _best(self) -> dict[str, Any] | None:
        """The best checkpoint, as state.json names it."""
        ranking = self._recorder.checkpoints.ranking() if self._recorder else []
        return (
            {"step": ranking[0].step, "valid_reward_mean": ranking[0].reward} if ranking else None
        )

    def _pause_if_due(self, is_stopped: bool, hours: float) -> None:
        """All ranks pause together, whichever of them has a reason."""
        spent = budget_spent(self.job, self._progress.step, hours)
        mine = "stopped on request" if is_stopped else spent
        reasons = [reason for reason in self._ranks.gather([mine]) if reason]
        if reasons:
            if self._progress.step > 0:
                self._save_state()
            self._pause(self._progress.step, reasons[0], "resume it")

    def _grading_failures(
        self, groups: Sequence[Group], evaluation: Evaluation | None
    ) -> list[str]:
        failures = grading_failure(self.job, groups, "training")
        return failures + (
            grading_failure(self.job, evaluation.groups, "validation") if evaluation else []
        )

    def _pause_on_grading_failures(self, step: int, failures: Sequence[str]) -> None:
        if failures:
            look = f"look at `rft runs errors {shlex.quote(str(self.folder.root))}`"
            changed = "; a changed grader takes a new run" if step > 1 else ""
            again = "the step is then done again"
            remedy = f"{look}, and resume once the grader has what it needs ({again}){changed}"
            self._pause(step, failures[0], remedy, failures[1:], level="warn")

    def _pause(
        self, step: int, reason: str, remedy: str, more: Sequence[str] = (), level: str = "info"
    ) -> None:
        first = Problem(f"paused after step {step}: {reason}", str(self.folder.root), remedy)
        pause = PausedError([first, *map(Problem, more)])
        self._end("paused", str(pause), level)
        raise pause

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.say("warn", warning)

    def _end(self, status: str, message: str, level: str = "info") -> Outcome:
        if not self._recorder:
            progress = self._progress
            return Outcome(
                status, self.folder.root, progress.step, progress.baseline, None, None,
                progress.last_reward, None, message,
            )  # fmt: skip
        error = {"message": message} if status == "failed" else None
        best = self._best()
        if status == "succeeded" and best:
            self.say(
                "info", f"New fine-tuned model created: {self.folder.root.name}@{best['step']}"
            )
        self.say("error" if error else level, message)
        self._recorder.writer.status(status, message=message, error=error)  # type: ignore[arg-type]
        outcome = outcome_of(self.folder.root, status, message)
        self._report.finished(outcome)
        return outcome


def _failed_start(writer: RunWriter) -> Callable[[type[BaseException] | None, Any, Any], None]:
    """An exit callback: a run whose parts could not be put together is a failed one."""

    def record(kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        if kind is not None and writer.state.get("status") == "validating_files":
            writer.status("failed", message=str(error), error={"message": str(error)})

    return record
