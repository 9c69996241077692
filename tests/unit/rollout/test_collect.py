"""Prompts become groups in their own order, however completions and grades come in."""

import threading
from collections.abc import Iterator, Sequence

from rft.graders import Grader
from rft.rollout.collect import Collector, Draw, RolloutPlan, sample_of
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.types import Completion, Example, FinishReason, Grade, Item, Prompt, Sample

PLAN = RolloutPlan(3, 11, Purpose.EVALUATE, 5, SamplingSettings(1.0, 1.0, 16))


def completion(text: str, finish_reason: FinishReason = "stop") -> Completion:
    return Completion((1, 2), (-1.0, -1.0), finish_reason, f"<think>{text}", text)


def make_draw(ordinal: int, row: int) -> Draw:
    return Draw(ordinal, Prompt(Example(row, (), {"answer": f"row {row}"}), "", (row, row + 1)))


class LastFirst(Sampler):
    """Finishes the last sample of the last request first."""

    is_exact, facts = True, {}

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    def refresh(self) -> None:
        """Nothing to take over."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        assert settings == PLAN.sampling
        self.requests += requests
        for sample in reversed(range(requests[0].num_samples if requests else 0)):
            for index in reversed(range(len(requests))):
                text = f"{requests[index].prompt_ids[0]}.{sample}"
                yield Sampled(index, sample, completion(text))


class Echo(Grader):
    """Puts what it was given into its errors."""

    name, type = "echo", "string_check"

    def grade(self, sample: Sample, item: Item) -> Grade:
        return Grade("echo", "string_check", 1.0, errors={item["answer"]: sample["output_text"]})


class InPairs(Grader):
    """Grades a completion only while another is being graded."""

    name, type = "pairs", "string_check"

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=10)

    def grade(self, sample: Sample, item: Item) -> Grade:
        self._barrier.wait()
        return Grade("pairs", "string_check", 1.0)


def test_groups_come_in_the_order_of_the_draws() -> None:
    draws = [make_draw(8, 2), make_draw(5, 0), make_draw(6, 2)]
    groups = Collector(LastFirst(), Echo(), concurrency=3).collect(draws, PLAN)
    assert [(group.ordinal, group.prompt) for group in groups] == [
        (draw.ordinal, draw.prompt) for draw in draws
    ]
    for group, row in zip(groups, (2, 0, 2), strict=True):
        texts = [f"{row}.{sample}" for sample in range(3)]
        assert [r.completion.output_text for r in group.rollouts] == texts
        assert [r.grade.errors for r in group.rollouts] == [{f"row {row}": text} for text in texts]


def test_what_is_asked_of_the_sampler() -> None:
    sampler = LastFirst()
    Collector(sampler, Echo(), concurrency=1).collect([make_draw(8, 2), make_draw(5, 0)], PLAN)
    assert sampler.requests == [
        SampleRequest((2, 3), 3, 11, Purpose.EVALUATE, 5, 8),
        SampleRequest((0, 1), 3, 11, Purpose.EVALUATE, 5, 5),
    ]


def test_completions_are_graded_side_by_side() -> None:
    draws = [make_draw(0, 0), make_draw(1, 1)]
    groups = Collector(LastFirst(), InPairs(), concurrency=2).collect(draws, PLAN)
    assert [len(group.graded) for group in groups] == [3, 3]


def test_no_draws() -> None:
    assert Collector(LastFirst(), Echo(), concurrency=1).collect([], PLAN) == []


def test_graders_see_the_answer_in_the_shape_of_the_product() -> None:
    assert sample_of(completion("42", "length")) == {
        "output_text": "42",
        "output_tools": [],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "42"},
                "finish_reason": "length",
            }
        ],
    }
