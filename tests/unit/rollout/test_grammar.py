"""What a schema lets a completion go on with, with and without a thinking block before it."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from rft.errors import ModelError
from rft.rollout.grammar import Grammars
from tests.schemas import an_object
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

END = 2
SCHEMA = json.dumps(an_object(a={"type": "integer"}))


def thinking_tokenizer() -> PreTrainedTokenizerFast:
    """Its markers are tokens of their own, as those of Qwen 3 are: added, but not special."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer


def writing_tokenizer() -> PreTrainedTokenizerFast:
    """Its model writes the markers as text."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE + "{# <think> </think> #}"
    return tokenizer


def grammars(tokenizer: PreTrainedTokenizerFast, vocabulary_size: int = 264) -> Grammars:
    return Grammars(tokenizer, [END], vocabulary_size, num_threads=1)


def accepts(tokenizer: PreTrainedTokenizerFast, text: str, prompt: str = "user: hi") -> bool:
    """Whether a completion may be this text and then end."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    matcher = grammars(tokenizer).start(SCHEMA, tokenizer.encode(prompt, add_special_tokens=False))
    return matcher.validate_tokens([*ids, END]) == len(ids) + 1


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ('{"a":1}', True),
        ('{"a": 1}', True),
        ('{ "a" : 12 }', True),
        ('{"a":  1}', False),
        ('{"a":\n1}', False),
        (' {"a":1}', False),
        ('{"a":1} ', False),
        ('{"a":1.5}', False),
        ('{"b":1}', False),
        ("", False),
        ('{"a":1}{"a":1}', False),
    ],
)
def test_one_blank_may_stand_between_tokens_of_json(text: str, is_accepted: bool) -> None:
    assert accepts(tiny_tokenizer(), text) is is_accepted


@pytest.mark.parametrize("make", [thinking_tokenizer, writing_tokenizer])
def test_a_model_that_thinks_may_do_so_first(make) -> None:
    tokenizer = make()
    assert accepts(tokenizer, '{"a":1}')
    assert accepts(tokenizer, '<think>I see {"a":\n é</think>\n\n{"a":1}')
    assert accepts(tokenizer, '<think></think>{"a":1}')
    assert not accepts(tokenizer, '<think>I see {"a":1}')
    assert not accepts(tokenizer, '<think>a</think>b{"a":1}')


@pytest.mark.parametrize("make", [thinking_tokenizer, tiny_tokenizer])
def test_a_block_that_the_prompt_opened_is_closed_first(make) -> None:
    tokenizer, prompt = make(), "user: hi\nassistant: <think>\n"
    assert accepts(tokenizer, 'I see.</think>\n\n{"a":1}', prompt)
    assert not accepts(tokenizer, '{"a":1}', prompt)
    assert not accepts(tokenizer, "I see.</think>", prompt)


@pytest.mark.parametrize("make", [thinking_tokenizer, writing_tokenizer])
def test_a_block_that_the_prompt_closed_is_not_opened_again(make) -> None:
    tokenizer, prompt = make(), "assistant: <think>\n\n</think>\n\n"
    assert accepts(tokenizer, '{"a":1}', prompt)
    assert not accepts(tokenizer, '<think>x</think>{"a":1}', prompt)


@pytest.mark.parametrize("make", [thinking_tokenizer, writing_tokenizer])
def test_a_block_can_be_kept_empty(make) -> None:
    tokenizer = make()

    def accepted(text: str, prompt: str) -> bool:
        ids = tokenizer.encode(text, add_special_tokens=False)
        start = grammars(tokenizer).start(SCHEMA, tokenizer.encode(prompt), may_think=False)
        return start.validate_tokens([*ids, END]) == len(ids) + 1

    assert accepted('{"a":1}', "hi") and not accepted('<think></think>{"a":1}', "hi")
    assert accepted('</think>\n{"a":1}', "hi <think>\n")
    assert not accepted('x</think>{"a":1}', "hi <think>\n")


def test_a_model_that_does_not_think_may_not() -> None:
    assert not accepts(tiny_tokenizer(), '<think>x</think>{"a":1}')


def test_bits_are_in_packbits_order_over_the_whole_head() -> None:
    tokenizer = tiny_tokenizer()
    found = grammars(tokenizer, vocabulary_size=267)
    matchers = [found.start(SCHEMA, [5]) for _ in range(2)]
    (brace,) = tokenizer.encode("{", add_special_tokens=False)
    assert matchers[1].consume_token(brace)
    bits = found.allowed(matchers)
    assert bits.shape == (2, 34)
    first, second = np.unpackbits(bits, axis=1, count=267)
    assert np.flatnonzero(first).tolist() == [brace]
    expected = sorted(tokenizer.encode('" ', add_special_tokens=False))
    assert np.flatnonzero(second).tolist() == expected


def test_after_the_json_only_the_end_tokens_are_allowed() -> None:
    tokenizer = tiny_tokenizer()
    found = Grammars(tokenizer, [END, 0], 260, num_threads=1)
    matcher = found.start(SCHEMA, [5])
    assert matcher.consume_tokens(tokenizer.encode('{"a":1}', add_special_tokens=False))
    allowed = np.flatnonzero(np.unpackbits(found.allowed([matcher])[0], count=260))
    assert allowed.tolist() == [0, END]


def test_a_schema_that_admits_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be held to this schema"):
        grammars(tiny_tokenizer()).start('{"type": "string", "pattern": "^(?=a)"}', [5])
