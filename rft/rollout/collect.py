"""Prompts → groups: sample, grade each completion as it finishes, put the rollouts of a prompt together."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from rft.graders import Grader
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampler, SampleRequest, SamplingSettings
from rft.types import Completion, Grade, Group, Prompt, Rollout, Sample


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


class Collector:
    """Samples and grades; grading runs in threads while others decode."""

    def __init__(self, sampler: Sampler, grader: Grader, concurrency: int):
        self._sampler = sampler
        self._grader = grader
        self._concurrency = concurrency

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
        grades: dict[tuple[int, int], Future[Grade]] = {}
        with cancelling_pool(self._concurrency) as pool:
            for sampled in self._sampler.sample(requests, plan.sampling):
                place = (sampled.request, sampled.sample)
                item = draws[sampled.request].prompt.example.item
                completions[place] = sampled.completion
                grades[place] = pool.submit(self._grader.grade, sample_of(sampled.completion), item)
        return [
            Group(
                draw.ordinal,
                draw.prompt,
                tuple(
                    Rollout(completions[index, sample], grades[index, sample].result())
                    for sample in range(plan.group_size)
                ),
            )
            for index, draw in enumerate(draws)
        ]


@contextmanager
def cancelling_pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose waiting work is dropped when the caller is interrupted."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="grade")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def sample_of(completion: Completion) -> Sample:
    """The completion as graders see it, in the product's shape."""
    message = {"role": "assistant", "content": completion.output_text}
    choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
    return {"output_text": completion.output_text, "output_tools": [], "choices": [choice]}
