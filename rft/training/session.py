"""A running job: evaluate, step, evaluate …, with its run folder kept true on the way."""

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from rft.errors import DiskError, JobFailedError, PausedError, Problem, RftError
from rft.failpoints import reach
from rft.policy import Policy
from rft.rollout.collect import Collector
from rft.rollout.memory import num_slots, shrink_to
from rft.rollout.sampler import Sampler
from rft.runs.layout import RunFolder
from rft.runs.requests import Request
from rft.runs.writer import BEGUN, Level, Status
from rft.training.agreement import common_text, fingerprint, refuse_drift
from rft.training.endings import budget_spent, early_end, grading_failure
from rft.training.evaluation import Evaluation, evaluate
from rft.training.hang import HangWatch
from rft.training.host_tensors import HostTensors
from rft.training.interrupts import StepAbandoned, StopRequests
from rft.training.optimization import load_optimizer_tensors, optimizer_tensors
from rft.training.outcome import outcome_of
from rft.training.ranks import Ranks
from rft.training.record import Recorder
from rft.training.report import Outcome, Report
from rft.training.resume import Resumption
from rft.training.setup import Workshop
from rft.training.space import refuse_full_disk, space_of
from rft.training.states import Progress, State, StateStore, smaller_sizes
from rft.training.trainer import StepRecord, Trainer
from rft.training.update import Updater
from rft.training.watch import Watch
from rft.types import Group


@dataclass(frozen=True, slots=True)
class Parts:
    """What one process of a job works with."""

    workshop: Workshop
    ranks: Ranks
    policy: Policy
    trainer: Trainer
    updater: Updater
    collector: Collector
    sampler: Sampler
    watch: Watch
    recorder: Recorder | None
    """Only the first rank has one."""


class Session:
    """One process's part in a running job."""

    def __init__(
        self,
        parts: Parts,
        folder: RunFolder,
        resumption: Resumption,
        stop: StopRequests,
        report: Report,
    ):
        self.job = parts.workshop.job
        self.folder = folder
        self._parts = parts
        self._recorder = parts.recorder
        self._ranks = parts.ranks
        self._watch = parts.watch
        self._resumption = resumption
        self._total_steps = resumption.origin.total_steps
        self._stop = stop
        self._report = report
        self._states = StateStore(folder)
        fresh = Progress(0, 0, resumption.data_digest, None, None, None, 0, {})
        self._progress = self._sized(resumption.state.progress if resumption.state else fresh)
        self._state: State | None = None
        """What the run goes back to when the step in progress is given up; on the first rank."""
        self._saving_seconds: float | None = None
        """What writing the step before took."""
        self._saved_step = resumption.state.progress.step if resumption.state else None

    def begin(self) -> None:
        """Take up the state, see that all ranks have the same, and tell that the job runs."""
        state = self._resumption.state
        if state:
            self._take_up(state)
        self._parts.sampler.refresh()
        refuse_drift(
            self._ranks,
            fingerprint(
                common_text(self._parts.workshop.job),
                self._progress.data_digest,
                self._progress.step,
                self._parts.policy.adapter_tensors(),
                self._parts.workshop.base_digest,
                self._parts.workshop.adapter_digest,
            ),
        )
        if self._recorder:
            self._forget_later_steps(state)
            self._state = state or self._captured()
            writer = self._recorder.writer
            writer.status("queued", "Files validated, moving job to queued state")
            writer.status("running", "Fine-tuning job started")
            for fault in self._resumption.faults:
                self.say("warn", fault)
        if self._parts.workshop.source.adapter is not None:
            self.say("info", "Continuing from an adapter: engine.lora is what that adapter has")
        self._report.started(self._facts())

    def run(self) -> Outcome:
        """Evaluate, step, evaluate … until the steps are done or something ends the run early."""
        rank = self._ranks.rank
        self._stop.on_stuck(self._leave_stuck)
        # only now: before, the first rank may not yet have dropped a request to an earlier process
        self._stop.listen_in(self.folder)
        try:
            with HangWatch(self._signs_of_life, self._tell_hang, self.folder.root, rank):
                return self._run()
        except DiskError as error:
            self._pause_over_disk(error)
        except KeyboardInterrupt:
            self._leave_at_once()

    def say(self, level: Level, message: str) -> None:
        """An event of the run."""
        if self._recorder:
            self._recorder.say(level, message)

    def _run(self) -> Outcome:
        try:
            return self._loop()
        except (PausedError, DiskError):
            raise
        except StepAbandoned:
            return self._stop_for(self._stop.request)
        except Exception as error:
            # the other ranks have left already, or something on the way took the abandoning for a failure
            if self._stop.request and (self._ranks.size > 1 or self._stop.has_abandoned):
                return self._stop_for(self._stop.request)
            self._fail(error)

    def _signs_of_life(self) -> object:
        """Changes whenever anything advances."""
        parts = self._parts
        return (
            dict(parts.sampler.spent),
            parts.collector.num_collected,
            parts.updater.passes.num_passes,
            self._ranks.num_exchanges,
            self._progress.step,
            self._saved_step,
        )

    def _tell_hang(self, message: str) -> None:
        """From the watch's thread; other ranks than the first have no other voice than stderr."""
        if self._recorder:
            self._recorder.say("warn", message)
        else:
            sys.stderr.write(f"[rank {self._ranks.rank}] {message}\n")

    def _take_up(self, state: State) -> None:
        parts = self._parts
        parts.policy.load_adapter(state.adapter)
        parameters = parts.policy.parameters()
        load_optimizer_tensors(parts.updater.optimizer, parameters, state.optimizer)
        parts.trainer.go_to(state.progress.stream_cursor)
        if self._resumption.keeps_ranking:
            self._watch.counters.update(state.progress.watch)
        self._stay_small(state.progress)
        progress = replace(state.progress, data_digest=self._resumption.data_digest)
        if not self._resumption.keeps_ranking:
            progress = replace(
                progress,
                baseline=None,
                last_reward=None,
                best_reward=None,
                evaluations_since_best=0,
            )
        self._progress = self._sized(progress)

    def _forget_later_steps(self, state: State | None) -> None:
        assert self._recorder
        step = state.progress.step if state else 0
        keeps_ranking = self._resumption.keeps_ranking
        self._recorder.checkpoints.forget_after(step if keeps_ranking else 0)
        expected = state.best if state and keeps_ranking else []
        for fault in self._recorder.checkpoints.drop_damaged(expected):
            self.say("warn", fault)
        self._states.forget_after(step)
        self._states.prune()

    def _facts(self) -> dict[str, Any]:
        job, workshop = self.job, self._parts.workshop
        return {
            "run_folder": str(self.folder.root),
            "model": job.model,
            "device": str(self._parts.policy.device),
            "dtype": job.engine.model.dtype,
            "sampler": self._parts.sampler.facts.get("sampler"),
            "num_processes": self._ranks.size,
            "total_steps": self._total_steps,
            "first_step": self._progress.step + 1,
            "batch_size": job.hyperparameters.batch_size,
            "group_size": job.engine.rollout.group_size,
            "num_training_rows": len(workshop.train_prompts),
            "num_validation_rows": len(workshop.valid_prompts),
        }

    def _loop(self) -> Outcome:
        began = time.monotonic()
        if self._progress.step == 0 and self._progress.baseline is None:
            self._start()
        for step in range(self._progress.step + 1, self._total_steps + 1):
            if reason := early_end(self.job, self._progress):
                self._save_state()
                return self._end("succeeded", reason)
            if request := self._agreed_stop((time.monotonic() - began) / 3600):
                return self._stop_for(request)
            with self._stop.abandonable():
                record = self._parts.trainer.step(step)
                reach("update.ended")
                is_due = (
                    step % self.job.hyperparameters.eval_interval == 0 or step == self._total_steps
                )
                evaluation = self._evaluate(step) if is_due else None
            failures = self._grading_failures((*record.groups, *record.replaced), evaluation)
            saving = time.monotonic()
            self._advance(record, evaluation, is_sound=not failures)
            self._saving_seconds = time.monotonic() - saving
            self._pause_on_grading_failures(step, failures)
        reason = early_end(self.job, self._progress)
        return self._end("succeeded", reason or "The job has successfully completed")

    def _start(self) -> None:
        """The evaluation of the untrained model, step 0, and a state: before it nothing is worth keeping, and
        a run that has none may begin again with another job."""
        if self.job.engine.evaluation.at_start:
            self._measure_baseline()
        self._save_state()

    def _measure_baseline(self) -> None:
        with self._stop.abandonable():
            evaluation = self._evaluate(0)
        if self._recorder:
            measured = self._watch.measure(None, evaluation)
            flat = self._recorder.step(None, evaluation, measured)
            self._warn(self._watch.evaluation(evaluation, flat))
        self._pause_on_grading_failures(0, self._grading_failures((), evaluation))
        reward, before = evaluation.reward_mean, self._progress
        started = replace(
            before, baseline=reward, last_reward=reward, watch=dict(self._watch.counters)
        )
        self._progress = self._sized(started)
        self._warn(smaller_sizes(before, self._progress))
        if self._recorder:
            self._state = self._captured()

    def _evaluate(self, step: int) -> Evaluation:
        reach("evaluation.begun")
        parts = self._parts
        prompts = parts.workshop.valid_prompts
        evaluation = evaluate(step, self.job, prompts, parts.collector, self._ranks)
        reach("evaluation.ended")
        return evaluation

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
        if self._recorder:
            self._record(self._recorder, record, evaluation)
        progress = Progress(
            step=record.step,
            stream_cursor=self._parts.trainer.stream.cursor,
            data_digest=before.data_digest,
            baseline=before.baseline,
            last_reward=evaluation.reward_mean if evaluation else before.last_reward,
            best_reward=best,
            evaluations_since_best=since_best,
            watch=dict(self._watch.counters),
        )
        sized = self._sized(progress)
        self._warn(smaller_sizes(before, sized))
        if not is_sound:
            return
        self._progress = sized
        is_due = record.step % self.job.engine.checkpoints.state_every_steps == 0
        if self._recorder:
            self._state = self._captured()
            if is_due or record.step == self._total_steps:
                self._save_state()

    def _record(
        self, recorder: Recorder, record: StepRecord, evaluation: Evaluation | None
    ) -> None:
        """Lines, samples and warnings of a step, and its checkpoint."""
        refuse_full_disk(self.folder.root, self._step_bytes)
        measured = self._watch.measure(record, evaluation)
        measured["timing/saving"] = self._saving_seconds
        flat = recorder.step(record, evaluation, measured)
        reach("save.recorded")
        self._warn(self._watch.step(record, flat))
        if evaluation:
            self._warn(self._watch.evaluation(evaluation, flat))
            files = self._parts.policy.adapter_files()
            if recorder.checkpoints.save(files, evaluation, flat):
                self.say("info", f"Checkpoint created at step {record.step}")

    @functools.cached_property
    def _step_bytes(self) -> int:
        """What a step adds on disk."""
        parameters = self._parts.policy.parameters().values()
        workshop = self._parts.workshop
        return space_of(
            sum(parameter.numel() for parameter in parameters),
            self.job,
            workshop.train_prompts,
            workshop.valid_prompts,
        ).step

    def _captured(self) -> State:
        """All that the run needs to go on from here, in the memory of the host."""
        assert self._recorder
        parts = self._parts
        optimizer = optimizer_tensors(parts.updater.optimizer, parts.policy.parameters())
        return State(
            progress=self._progress,
            origin=self._resumption.origin,
            best=self._recorder.checkpoints.ranking(),
            adapter=HostTensors(parts.policy.adapter_tensors()),
            optimizer=HostTensors(optimizer),
            positions=self._recorder.writer.positions(),
        )

    def _save_state(self) -> None:
        """Make the last finished step the one that a resumed run goes on from."""
        if not self._recorder or self._state is None:
            return
        step = self._state.progress.step
        if step == self._saved_step:
            return
        writer = self._recorder.writer
        writer.status("running", step=step, best=self._best())
        self._states.save(self._state)
        self._saved_step = step
        self._recorder.checkpoints.prune()

    def _sized(self, progress: Progress) -> Progress:
        """The progress with what want of memory may have halved."""
        settings, budget, slots = (
            self.job.engine,
            self._parts.updater.passes.token_budget,
            num_slots(self._parts.sampler),
        )
        return replace(
            progress,
            token_budget=budget if budget < settings.training.token_budget else None,
            slots=slots if slots is not None and slots < settings.rollout.slots else None,
        )

    def _stay_small(self, progress: Progress) -> None:
        """Go on with what the run had halved, or less if the job now asks for less."""
        passes = self._parts.updater.passes
        if progress.token_budget is not None:
            passes.token_budget = min(progress.token_budget, passes.token_budget)
        if progress.slots is not None:
            shrink_to(self._parts.sampler, progress.slots)

    def _best(self) -> dict[str, Any] | None:
        """The best checkpoint, as state.json names it."""
        ranking = self._recorder.checkpoints.ranking() if self._recorder else []
        return (
            {"step": ranking[0].step, "valid_reward_mean": ranking[0].reward} if ranking else None
        )

    def _agreed_stop(self, hours: float) -> Request | None:
        """All ranks stop together, whichever of them has a reason; `hours`: since the session began."""
        spent = budget_spent(self.job, self._progress.step, hours)
        mine = self._stop.request or (Request("pause", spent) if spent else None)
        with self._stop.abandonable():  # a rank that has left or hangs is not waited for
            requests = [request for request in self._ranks.gather([mine]) if request]
        return requests[0] if requests else None

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
            again = "the step is then done again"
            changed = "a changed grader takes a copy of the run, with --fork"
            remedy = f"{look}, and resume once the grader has what it needs ({again}; {changed})"
            more = tuple(map(Problem, failures[1:]))
            self._pause(failures[0], remedy, more, after=step, level="warn")

    def _stop_for(self, request: Request | None) -> Outcome:
        """End a run that is cancelled, pause it for any other reason."""
        if request and request.action == "cancel":
            return self._end("cancelled", request.reason)
        return self._pause(request.reason if request else "stopped on request")

    def _pause(
        self,
        reason: str,
        remedy: str = "resume it",
        more: Sequence[Problem] = (),
        *,
        after: int | None = None,
        level: Level = "info",
    ) -> NoReturn:
        """Leave a state and a checkpoint of the last step that counts, and the run paused.

        `after`: the step that gave the reason, where it is not to count.
        """
        step = self._progress.step
        what = f"paused after step {step if after is None else after}: {reason}"
        pause = PausedError([Problem(what, str(self.folder.root), remedy), *more])
        if self._recorder and self._state:
            reach("pause.begun")
            self._recorder.checkpoints.forget_after(step)
            self._recorder.writer.status(
                "pausing", f"Pausing: {reason}", step=step, best=self._best()
            )
            if step > 0:
                files = self._parts.policy.adapter_files(self._state.adapter)
                self._recorder.checkpoints.save_pause(files, step)
            reach("pause.checkpointed")
            if step > 0 and step != self._saved_step:
                self._states.save(self._state)
                self._saved_step = step
            self._recorder.checkpoints.prune()
            reach("pause.saved")
        self._end("paused", str(pause), level)
        raise pause

    def _leave_at_once(self) -> NoReturn:
        """After a second Ctrl-C, perhaps in the middle of a pause."""
        self._save_what_is_finished()
        message = f"interrupted; it goes on after step {self._progress.step}"
        if self._recorder is None or self._recorder.writer.state.get("status") in BEGUN:
            self._end("paused", message)
        raise PausedError(message, where=str(self.folder.root), remedy="resume it") from None

    def _leave_stuck(self) -> None:
        """From the thread that listens: the main thread is in a call that does not end."""
        try:
            self._stop_for(self._stop.request)
        except DiskError as error:
            with contextlib.suppress(PausedError):
                self._pause_over_disk(error)
        except PausedError:
            return

    def _pause_over_disk(self, error: DiskError) -> NoReturn:
        """Nothing that was saved is touched; the words go where space was held for them."""
        problem = error.problems[0]
        pause = PausedError(
            f"paused after step {self._progress.step}: {problem.what}",
            where=problem.where,
            remedy=f"{problem.remedy}, then resume it",
        )
        if self._recorder:
            self._save_what_is_finished()
            self._recorder.writer.free_reserve()
            try:
                self._end("paused", str(pause), "error")
            except DiskError:
                # not even that could be written: the run is seen to have no process any more
                self._report.event("error", str(pause))
        raise pause from error

    def _save_what_is_finished(self) -> None:
        """Steps that no state on disk has yet, if the disk takes them."""
        with contextlib.suppress(DiskError):
            self._save_state()

    def _fail(self, error: Exception) -> NoReturn:
        self._save_what_is_finished()
        best = self._best()
        message = f"{type(error).__name__}: {error}"
        if best:
            name = f"{self.folder.root.name}@{best['step']}"
            reward = best["valid_reward_mean"]
            message += f"\nIts best checkpoint can be used: {name}, valid_reward_mean {reward:.3f}"
        self._end("failed", message, "error")
        if isinstance(error, RftError):
            raise error
        raise JobFailedError(
            f"step {self._progress.step + 1} failed: {message}",
            where=str(self.folder.root),
            remedy="go on with --resume once the cause is mended",
        ) from error

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.say("warn", warning)

    def _end(self, status: Status, message: str, level: Level = "info") -> Outcome:
        if not self._recorder:
            progress = self._progress
            return Outcome(
                status, self.folder.root, progress.step, progress.baseline, None, None,
                progress.last_reward, None, message,
            )  # fmt: skip
        best = self._best()
        if best and status in ("succeeded", "failed"):
            name = f"{self.folder.root.name}@{best['step']}"
            self.say("info", f"New fine-tuned model created: {name}")
        if status == "succeeded":
            self._recorder.checkpoints.prune(is_last=True)
        self._recorder.end(status, message, level)
        outcome = outcome_of(self.folder.root, status, message)
        self._report.finished(outcome)
        return outcome
