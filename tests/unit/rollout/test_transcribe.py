"""When a completion ends, and which part of it graders read."""

import random

import numpy as np
import pytest

from rft.rollout.sampler import SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.types import Completion
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = 2
TRANSCRIBER = Transcriber(TOKENIZER, [END])


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def limits(max_tokens: int = 100, *stop: str) -> SamplingSettings:
    return SamplingSettings(1.0, 1.0, max_tokens, stop)


def transcribe(token_ids: list[int], *stop: str, prompt: str = "hi") -> Completion:
    logprobs = [-float(n) for n in range(len(token_ids))]
    return TRANSCRIBER.completion(token_ids, logprobs, "stop", ids(prompt), limits(100, *stop))


@pytest.mark.parametrize(
    ("token_ids", "max_tokens", "stop", "reason"),
    [
        (ids("ab"), 3, (), None),
        (ids("abc"), 3, (), "length"),
        ([*ids("ab"), END], 3, (), "stop"),
        ([END], 1, (), "stop"),
        ([*ids("ab"), END], 9, (), "stop"),
        ([END, *ids("a")], 9, (), None),
        (ids("a\n"), 9, ("\n",), "stop"),
        (ids("a\n"), 2, ("\n",), "stop"),
        (ids("ab#"), 9, ("##",), None),
        (ids("ab##"), 9, ("##",), "stop"),
        (ids("ab##"), 9, ("xx", "b##"), "stop"),
        (ids("ab"), 2, ("##",), "length"),
        ([1, *ids("a")], 9, ("<|im_start|>",), None),
    ],
)
def test_finish_reason(
    token_ids: list[int], max_tokens: int, stop: tuple[str, ...], reason: str | None
) -> None:
    assert TRANSCRIBER.finish_reason(token_ids, limits(max_tokens, *stop)) == reason


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_string_is_found_at_the_token_that_completes_it(seed: int) -> None:
    """Whatever stands before it: characters of several tokens, special tokens, and hundreds of them."""
    random_of = random.Random(seed)
    pieces = [*map(ids, ("a", " ", "é", "\n", "日本", "🙂", "ab", "#", "the capital")), [1], [END]]
    settings = limits(10_000, "é#", "\n🙂", "本🙂 é")
    transcriber = Transcriber(TOKENIZER, [])
    token_ids: list[int] = []
    reason = None
    for token_id in (t for _ in range(2000) for t in random_of.choice(pieces)):
        token_ids.append(token_id)
        text = TOKENIZER.decode(token_ids, skip_special_tokens=True)
        reason = transcriber.finish_reason(token_ids, settings)
        assert (reason == "stop") == any(stop in text for stop in settings.stop)
        if reason:
            break
    assert reason == "stop"


def test_looking_for_a_stop_string_does_not_grow_with_the_completion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []
    decode = TOKENIZER.decode

    def noted(token_ids: list[int], **options: bool) -> str:
        lengths.append(len(token_ids))
        return str(decode(token_ids, **options))

    monkeypatch.setattr(TOKENIZER, "decode", noted)
    assert TRANSCRIBER.finish_reason(ids("ab" * 4000), limits(100_000, "##")) is None
    assert max(lengths) < 100


def test_any_of_several_end_tokens_ends() -> None:
    transcriber = Transcriber(TOKENIZER, [END, 77])
    assert transcriber.finish_reason([5, 77], limits()) == "stop"
    assert transcriber.finish_reason([77, 5], limits()) is None


def test_tokens_stay_and_special_ones_are_not_text() -> None:
    token_ids = [*ids("4é2"), END]
    found = transcribe(token_ids)
    assert found.token_ids == tuple(token_ids)
    assert found.sampling_logprobs == tuple(-float(n) for n in range(len(token_ids)))
    assert (found.text, found.output_text) == ("4é2", "4é2")
    assert (found.num_reasoning_tokens, found.allowed_tokens) == (0, None)


@pytest.mark.parametrize(
    ("stop", "output_text"),
    [
        ((), "one. two; three"),
        ((";",), "one. two"),
        ((";", "."), "one"),
        (("three", "two"), "one. "),
        (("one",), ""),
        (("four",), "one. two; three"),
    ],
)
def test_the_answer_ends_before_the_earliest_stop_string(
    stop: tuple[str, ...], output_text: str
) -> None:
    found = transcribe(ids("one. two; three"), *stop)
    assert (found.text, found.output_text) == ("one. two; three", output_text)


def test_a_thinking_block_is_cut_and_counted() -> None:
    found = transcribe([*ids("<think>2+2</think>\n\n4"), END])
    assert found.text == "<think>2+2</think>\n\n4"
    assert found.output_text == "4"
    assert found.num_reasoning_tokens == len("<think>2+2</think>")


def test_a_stop_string_after_the_thoughts() -> None:
    found = transcribe(ids("<think>a. b.</think>c. d"), ".")
    assert found.output_text == "c"


def test_a_block_that_the_prompt_has_opened() -> None:
    found = transcribe(ids("2+2</think>4"), prompt="what?\n<think>\n")
    assert (found.output_text, found.num_reasoning_tokens) == ("4", len("2+2</think>"))


def test_an_answer_of_nothing_but_the_end() -> None:
    found = transcribe([END])
    assert (found.token_ids, found.text, found.output_text) == ((END,), "", "")


def test_allowed_tokens_are_handed_on() -> None:
    bits = np.array([[128, 1]], np.uint8)
    found = TRANSCRIBER.completion([5], [-1.0], "length", [3], limits(), bits)
    assert found.allowed_tokens is bits and found.is_truncated


@pytest.mark.parametrize(
    ("token_ids", "stop", "output_text", "marked_text"),
    [
        (ids("ab"), (), "ab", None),
        ([*ids("ab"), END], (), "ab", None),
        ([1, *ids("ab"), 1, END], (), "ab", "<|im_start|>ab<|im_start|>"),
        ([*ids("<think>x</think>"), 1, *ids("ab")], (), "ab", "<|im_start|>ab"),
        ([*ids("so <think>x</think>"), 1, *ids("ab")], (), "so ab", "so <|im_start|>ab"),
        ([1, *ids("ab;c"), 1], (";",), "ab", "<|im_start|>ab"),
    ],
)
def test_the_answer_is_there_with_its_special_tokens_where_it_has_any(
    token_ids: list[int], stop: tuple[str, ...], output_text: str, marked_text: str | None
) -> None:
    found = transcribe(token_ids, *stop)
    assert (found.output_text, found.marked_text) == (output_text, marked_text)


@pytest.mark.parametrize(
    ("text", "prompt", "is_open"),
    [
        ("<think>so", "hi", True),
        ("<think>so</think>", "hi", False),
        ("<think>so</think>4", "hi", False),
        ("so", "hi <think>\n", True),
        ("so</think>4", "hi <think>\n", False),
        ("4", "hi", False),
        ("<seed:think>a", "hi", True),
        ("<|START_THINKING|>a<|END_THINKING|>b", "hi", False),
        ("◁think▷a◁/think▷b", "hi", False),
    ],
)
def test_a_completion_that_never_left_its_thoughts_is_marked(
    text: str, prompt: str, is_open: bool
) -> None:
    found = transcribe(ids(text), prompt=prompt)
    assert found.ends_in_thinking is is_open
    assert not (is_open and found.output_text)


@pytest.mark.parametrize("mark", ["<think>", "<reasoning>", "[THINK]"])
def test_a_marker_within_json_is_text(mark: str) -> None:
    token_ids = [*ids('{"a": "use ' + mark + ' tags"}'), END]
    settings = SamplingSettings(1.0, 1.0, 100, schema="{}")
    logprobs = [0.0] * len(token_ids)
    found = TRANSCRIBER.completion(token_ids, logprobs, "stop", ids("hi"), settings)
    assert found.output_text == '{"a": "use ' + mark + ' tags"}'
    assert not found.ends_in_thinking and found.num_reasoning_tokens == 0
    before = [*ids("<think>x</think>"), *token_ids]
    after = TRANSCRIBER.completion(before, [0.0] * len(before), "stop", ids("hi"), settings)
    assert after.output_text == found.output_text and after.num_reasoning_tokens == 16
