"""Prompts → groups: sample, grade each completion as it finishes, put the rollouts of a prompt together."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rft.failpoints import reach
from rft.graders import Grader
from rft.graders.cache import GradeCache, PendingGrade
from rft.graders.sample import make_sample, parse_error_details
from rft.rollout.judge import LocalJudge
from rft.rollout.memory import sample_within_memory
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampler, SampleRequest, SamplingSettings
from rft.types import Completion, Example, Grade, Group, Item, Prompt, Rollout, Sample

PATIENCE_SECONDS = 0.05
"""How long a judge waits for a question before it is looked whether any can still come."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A prompt taken from the stream, with its place in it."""

    ordinal: int
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What is drawn for each prompt."""

    group_size: int
    seed: int
    purpose: Purpose
    step: int
    sampling: SamplingSettings


class GradingPool(ThreadPoolExecutor):
    """Threads that know how much of what they were given is not done yet."""

    def __init__(self, num_threads: int, thread_name_prefix: str):
        super().__init__(num_threads, thread_name_prefix)
        self._open: set[Future[Any]] = set()

    @property
    def num_open(self) -> int:
        return len(self._open)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future


class Collector:
    """Samples and grades; grading runs in threads while others decode, each sample once."""

    def __init__(
        self,
        sampler: Sampler,
        grader: Grader,
        concurrency: int,
        *,
        wants_json: bool = False,
        judges: Sequence[LocalJudge] = (),
    ):
        """`judges`: those that the grader asks and that answer on the device of the sampler, when that is free."""
        self._sampler = sampler
        self._judges = judges
        self._grader = grader
        self._grades = GradeCache(grader)
        self._concurrency = concurrency
        self._wants_json = wants_json
        self._open_pool: GradingPool | None = None
        self.seconds_waited: float = 0.0
        """Spent so far on grades that came after the last completion: what sampling did not hide."""
        self.num_collected: int = 0
        """Completions and grades so far."""

    def collect(self, draws: Sequence[Draw], plan: RolloutPlan) -> list[Group]:
        """One group per draw, in the order of the draws; rollouts in the order of their samples."""
        requests = [
            SampleRequest(
                draw.prompt.token_ids,
                plan.group_size,
                plan.seed,
                plan.purpose,
                plan.step,
                draw.ordinal,
            )
            for draw in draws
        ]
        completions: dict[tuple[int, int], Completion] = {}
        pending: dict[tuple[int, int], PendingGrade] = {}
        unread: dict[tuple[int, int], str] = {}
        with self._pool() as pool:
            for sampled in sample_within_memory(self._sampler, requests, plan.sampling):
                place, completion = (sampled.request, sampled.sample), sampled.completion
                example = draws[sampled.request].prompt.example
                sample = self._sample(completion, example)
                completions[place] = completion
                unread[place] = parse_error_details(sample)
                self.num_collected += 1
                reach("rollout.sampled")
                pending[place] = self._grades.submit(sample, example.item, pool)
            began = time.monotonic()
            self._serve(pool)
            self.seconds_waited += time.monotonic() - began
            grades = self._await(pending)
        reach("rollout.graded")
        return [
            Group(
                draw.ordinal,
                draw.prompt,
                tuple(
                    Rollout(
                        completions[index, sample],
                        with_parse_error(grades[index, sample], unread[index, sample]),
                    )
                    for sample in range(plan.group_size)
                ),
            )
            for index, draw in enumerate(draws)
        ]

    def _sample(self, completion: Completion, example: Example) -> Sample:
        return make_sample(
            completion.output_text,
            completion.finish_reason,
            marked_text=completion.marked_text,
            tools=example.tools,
            wants_json=self._wants_json,
        )

    @contextmanager
    def grading_afresh(self, pairs: Sequence[tuple[Sample, Item]]) -> Iterator[list[PendingGrade]]:
        """Each pair's grade by a new call of the grader, made while the body of the `with` runs."""
        with self._pool() as pool:
            grades = [pool.submit(self._grader.grade, sample, item) for sample, item in pairs]
            yield [partial(self._graded, pool, grade) for grade in grades]

    def _graded(self, pool: GradingPool, grade: Future[Grade]) -> Grade:
        self._serve(pool)
        return grade.result()

    def _serve(self, pool: GradingPool) -> None:
        """Let the judges answer until no grade is left that could ask them."""
        while self._judges and pool.num_open:
            for judge in self._judges:
                judge.serve(PATIENCE_SECONDS)

    @contextmanager
    def _pool(self) -> Iterator[GradingPool]:
        """As many threads as grades may be computed side by side, whoever asks for them."""
        if self._open_pool is not None:
            yield self._open_pool
            return
        with ExitStack() as stack:
            pool = stack.enter_context(cancelling_pool(self._concurrency))
            for judge in self._judges:
                stack.enter_context(judge.in_session())
            self._open_pool = pool
            try:
                yield pool
            finally:
                self._open_pool = None

    def _await(
        self, pending: Mapping[tuple[int, int], PendingGrade]
    ) -> dict[tuple[int, int], Grade]:
        began = time.monotonic()
        grades: dict[tuple[int, int], Grade] = {}
        for place, grade in pending.items():
            grades[place] = grade()
            self.num_collected += 1
        self.seconds_waited += time.monotonic() - began
        return grades


def with_parse_error(grade: Grade, details: str) -> Grade:
    """The grade with the error that the completion could not be read, told once; the reward stays."""
    if not details or "sample_parse_error" in grade.errors:
        return grade
    return replace(grade, errors={**grade.errors, "sample_parse_error": details})


@contextmanager
def cancelling_pool(num_threads: int) -> Iterator[GradingPool]:
    """Threads whose waiting work is dropped when the caller is interrupted."""
    pool = GradingPool(num_threads, thread_name_prefix="grade")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
