"""Prompts become groups in their own order, however completions and grades come in; grading hides
behind sampling."""

import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from pydantic import TypeAdapter

from rft.graders import Grader, GraderDocument, GradingSettings, open_grader
from rft.graders.sample import make_sample
from rft.models import encode_prompts
from rft.rollout.collect import Collector, Draw, RolloutPlan
from rft.rollout.native import NativeSampler
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.training.metrics import errors_by_part, grading_failures
from rft.types import Completion, Example, FinishReason, Grade, Item, Prompt, Sample, Tool
from tests.tiny import tiny_policy, tiny_tokenizer

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


class Same(LastFirst):
    """Completes every prompt with the same word, cut off in the last sample."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        for sampled in super().sample(requests, settings):
            reason: FinishReason = "length" if sampled.sample == 2 else "stop"
            yield Sampled(sampled.request, sampled.sample, completion("same", reason))


class Counting(Grader):
    """Takes its time and notes what it was given, and how many grades it computed side by side."""

    name, type = "counting", "python"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[tuple[Sample, Item]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._seconds = seconds

    def grade(self, sample: Sample, item: Item) -> Grade:
        with self._lock:
            self.seen.append((sample, item))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self._seconds)
        with self._lock:
            self._at_once -= 1
        return Grade("counting", "python", 1.0, latency=0.05)


def test_the_same_answer_to_the_same_item_is_graded_once_in_a_run() -> None:
    grader = Counting()
    collector = Collector(Same(), grader, concurrency=2)
    draws = [make_draw(0, 0), make_draw(1, 1), make_draw(2, 0)]
    for _ in range(2):
        groups = collector.collect(draws, PLAN)
        assert [len(group.graded) for group in groups] == [3, 3, 3]
    asked = sorted(
        (item["answer"], sample["choices"][0]["finish_reason"]) for sample, item in grader.seen
    )
    assert asked == [("row 0", "length"), ("row 0", "stop"), ("row 1", "length"), ("row 1", "stop")]
    # the second time all are known
    assert [r.grade.latency for group in groups for r in group.rollouts] == [0.0] * 9


def test_grades_made_afresh_count_against_the_same_limit() -> None:
    grader = Counting(0.02)
    collector = Collector(LastFirst(), grader, concurrency=2)
    pair = (make_sample("canary"), {"answer": "row 0"})
    with collector.grading_afresh([pair] * 4) as pending:
        collector.collect([make_draw(0, 0)], PLAN)
    assert [grade().latency for grade in pending] == [0.05] * 4
    assert len(grader.seen) == 7
    assert grader.most_at_once == 2


class Calling(LastFirst):
    """Answers with a call, with one that is cut off, and with words that stand for a special token's."""

    ANSWERS = (
        Completion(
            (1,), (-1.0,), "stop", "", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        ),
        Completion((1,), (-1.0,), "length", "", '<tool_call>{"name": "f", "arg'),
        Completion((1,), (-1.0,), "stop", "", "g{}", marked_text="[TOOL_CALLS]g[ARGS]{}"),
    )

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        for sampled in super().sample(requests, settings):
            yield Sampled(sampled.request, sampled.sample, self.ANSWERS[sampled.sample])


TOOL: Tool = {"type": "function", "function": {"name": "f"}}
NAMES = (
    "def grade(sample, item):\n"
    "    return sum(ord(call['function']['name']) for call in sample['output_tools'])\n"
)
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {
        "name": {
            "type": "string_check",
            "name": "name",
            "input": "{{ sample.output_tools[0].function.name }}",
            "reference": "f",
            "operation": "eq",
        },
        "code": {"type": "python", "name": "code", "source": NAMES},
    },
    "calculate_output": "name + code",
}


@pytest.mark.parametrize("num_times", [1, 2])
def test_graders_see_calls_and_what_cannot_be_read_is_told_once(num_times: int) -> None:
    """From the cache too, whose grades know nothing of it."""
    example = Example(0, (), {"answer": ""}, (TOOL,))
    draw = Draw(0, Prompt(example, "", (0, 1)))
    document = TypeAdapter(GraderDocument).validate_python(MULTI)
    with open_grader(document, GradingSettings(sandbox="unsafe-local")) as grader:
        collector = Collector(Calling(), grader, concurrency=1)
        for _ in range(num_times):
            (group,) = collector.collect([draw], PLAN)
    grades = [rollout.grade for rollout in group.rollouts]
    assert [grade.reward for grade in grades] == [1 + ord("f"), 0.0, ord("g")]
    assert [list(grade.errors) for grade in grades] == [[], ["sample_parse_error"], []]
    assert (
        grades[1].sub_grades["name"].errors["sample_parse_error"]
        in (grades[1].errors["sample_parse_error"])
    )
    assert list(errors_by_part(grades[1])) == ["name"]


@pytest.mark.parametrize("has_tools", [True, False])
def test_what_no_grader_reads_is_told_all_the_same_and_earns_what_it_earns(has_tools: bool) -> None:
    example = Example(0, (), {"answer": "x"}, (TOOL,) if has_tools else ())
    collector = Collector(Calling(), Counting(), concurrency=1)
    (group,) = collector.collect([Draw(0, Prompt(example, "", (0, 1)))], PLAN)
    errors = [dict(rollout.grade.errors) for rollout in group.rollouts]
    assert [rollout.grade.reward for rollout in group.rollouts] == [1.0] * 3
    assert errors[0] == errors[2] == {}
    assert list(errors[1]) == (["sample_parse_error"] if has_tools else [])
    if has_tools:
        assert errors[1]["sample_parse_error"].startswith(
            "output_tools: tool call 1: not valid JSON"
        )


@pytest.mark.parametrize("wants_json", [True, False])
def test_json_is_read_where_the_job_wants_it(wants_json: bool) -> None:
    grader = Counting()
    collector = Collector(LastFirst(), grader, concurrency=1, wants_json=wants_json)
    (group,) = collector.collect([make_draw(0, 7)], PLAN)
    read = [sample.get("output_json") for sample, _ in grader.seen]
    assert sorted(map(str, read)) == (["7.0", "7.1", "7.2"] if wants_json else ["None"] * 3)
    assert [rollout.grade.errors for rollout in group.rollouts] == [{}] * 3


GRADE_SECONDS = 0.05
NUM_PROMPTS, GROUP_SIZE = 4, 8
LONG = RolloutPlan(GROUP_SIZE, 3, Purpose.TRAIN, 1, SamplingSettings(1.0, 1.0, 40))
PROMPTS = [
    Draw(row, Prompt(Example(row, (), {"row": row}), "", (5 + row, 6, 7, 8)))
    for row in range(NUM_PROMPTS)
]


@pytest.fixture(scope="module")
def native() -> NativeSampler:
    return NativeSampler(tiny_policy(), Transcriber(tiny_tokenizer(), [2]), num_slots=2)


def test_grading_hides_behind_decoding(native: NativeSampler) -> None:
    grader = Counting(GRADE_SECONDS)
    collector = Collector(native, grader, concurrency=2)
    groups = collector.collect(PROMPTS, LONG)
    assert [len(group.graded) for group in groups] == [GROUP_SIZE] * NUM_PROMPTS
    assert len(grader.seen) == NUM_PROMPTS * GROUP_SIZE
    assert grader.most_at_once == 2
    # one after the other, all of the grading would come after the decoding
    grading = NUM_PROMPTS * GROUP_SIZE * GRADE_SECONDS / 2
    assert collector.seconds_waited < grading / 2


def test_what_decoding_does_not_hide_is_waited_for() -> None:
    """The sampler gives all at once, so that three grades of 0.1 s in a row are still to come."""
    collector = Collector(LastFirst(), Counting(0.1), concurrency=1)
    began = time.monotonic()
    collector.collect([make_draw(0, 0)], PLAN)
    assert 0.1 < collector.seconds_waited <= time.monotonic() - began
    before = collector.seconds_waited
    collector.collect([make_draw(1, 1)], PLAN)
    assert collector.seconds_waited > before + 0.1


class Interrupted(Sampler):
    """The native sampler, until a person interrupts it."""

    is_exact, facts = True, {}

    def __init__(self, sampler: NativeSampler, num_completions: int):
        self._sampler = sampler
        self._num_completions = num_completions

    def refresh(self) -> None:
        self._sampler.refresh()

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        for number, sampled in enumerate(self._sampler.sample(requests, settings)):
            if number == self._num_completions:
                raise KeyboardInterrupt
            yield sampled


def test_an_interrupt_while_sampling_drops_the_grades_that_wait(native: NativeSampler) -> None:
    grader = Counting(0.3)
    short = RolloutPlan(GROUP_SIZE, 3, Purpose.TRAIN, 1, SamplingSettings(1.0, 1.0, 4))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Collector(Interrupted(native, 12), grader, concurrency=1).collect(PROMPTS, short)
    took = time.monotonic() - began
    time.sleep(0.35)
    # those that ran while the twelve were sampled, and the one under way
    assert len(grader.seen) <= 1 + took / 0.3 < 12


class Interrupting(Counting):
    """Interrupts the main thread while the first grade is waited for."""

    def grade(self, sample: Sample, item: Item) -> Grade:
        if not self.seen:
            time.sleep(0.1)
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, signal.SIGUSR1)
        return super().grade(sample, item)


def test_an_interrupt_while_waiting_drops_the_grades_that_wait() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    grader = Interrupting(0.05)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            Collector(LastFirst(), grader, concurrency=1).collect(
                [make_draw(row, row) for row in range(4)], PLAN
            )
    finally:
        signal.signal(signal.SIGUSR1, before)
    time.sleep(0.2)
    assert len(grader.seen) <= 2


def test_rows_with_tools_from_the_prompt_to_the_reward() -> None:
    """A random model's answers, their first half forced to be a call: what it is asked, writes and earns."""
    tokenizer = tiny_tokenizer()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages = ({"role": "user", "content": "call f"},)
    (prompt,) = encode_prompts(
        tokenizer,
        [Example(0, messages, {"answer": "f"}, (tool,))],
        chat_template_kwargs={},
        max_prompt_tokens=1000,
        source_name="train.jsonl",
    )
    assert json.dumps(tool) in prompt.text and "<tool_call>" in prompt.text
    model = NativeSampler(tiny_policy(max_position_embeddings=2048), Transcriber(tokenizer, [2]), 2)
    document = TypeAdapter(GraderDocument).validate_python(MULTI)
    plan = RolloutPlan(3, 1, Purpose.TRAIN, 1, SamplingSettings(1.0, 1.0, 12))
    with open_grader(document, GradingSettings(sandbox="unsafe-local")) as grader:
        (wild,) = Collector(model, grader, concurrency=2).collect([Draw(0, prompt)], plan)
        forced = Collector(Forced(model), grader, concurrency=2)
        (group,) = forced.collect([Draw(0, prompt)], plan)
    assert [rollout.grade.reward for rollout in wild.rollouts] == [0.0] * 3
    flags = [set(rollout.grade.errors) for rollout in wild.rollouts]
    assert flags == [{"invalid_variable_error"}] * 3
    assert grading_failures([wild]) == []
    assert [rollout.grade.reward for rollout in group.rollouts] == [1.0 + ord("f")] * 3


class Forced(Sampler):
    """Puts a call before what another sampler samples, as the transcriber hands it on."""

    is_exact, facts = True, {}

    def __init__(self, sampler: NativeSampler):
        self._sampler = sampler
        self._transcriber = Transcriber(tiny_tokenizer(), [2])

    def refresh(self) -> None:
        self._sampler.refresh()

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> '
        head = tiny_tokenizer().encode(call, add_special_tokens=False)
        for sampled in self._sampler.sample(requests, settings):
            ids = [*head, *sampled.completion.token_ids]
            prompt_ids = requests[sampled.request].prompt_ids
            made = self._transcriber.completion(ids, [0.0] * len(ids), "stop", prompt_ids, settings)
            yield Sampled(sampled.request, sampled.sample, made)
