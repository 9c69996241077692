"""A thinking block is cut from the answer and its tokens, markers included, are counted."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rft.models import find_thinking

Build = Callable[..., PreTrainedTokenizerFast]


@pytest.mark.parametrize(
    ("prompt", "completion", "reasoning", "answer"),
    [
        ("", "42", "", "42"),
        ("", "<think>so</think>\n\n42", "<think>so</think>", "42"),
        ("", "\n<think>so</think>42 ", "<think>so</think>", "42 "),
        ("", "Well <think>so</think> 42", "<think>so</think>", "Well  42"),
        ("", "<think>a</think>b<think>c</think>", "<think>a</think>", "b<think>c</think>"),
        ("", "<think>never closed", "<think>never closed", ""),
        ("", "<thinking>so</thinking>42", "<thinking>so</thinking>", "42"),
        ("", "<reasoning>so</reasoning>42", "<reasoning>so</reasoning>", "42"),
        ("", "<|begin_of_thought|>s<|end_of_thought|>4", "<|begin_of_thought|>s<|end_of_thought|>", "4"),
        ("", "<think>a</thinking>b</think>c", "<think>a</thinking>b</think>", "c"),
        ("", "so</think>42", "", "so</think>42"),
        ("<|im_start|>x\n<think>\n", "so</think>42", "so</think>", "42"),
        ("<|im_start|>x\n<think>\n", "never closed", "never closed", ""),
        ("<|im_start|>x\n<think>\n\n</think>\n\n", "42", "", "42"),
        ("", "<think>é😀</think>ü😀", "<think>é😀</think>", "ü😀"),
        ("", "é😀 <think>a</think>é", "<think>a</think>", "é😀 é"),
        ("", "", "", ""),
        ("<think>", "", "", ""),
    ],
)  # fmt: skip
def test_one_token_a_byte(
    build_tokenizer: Build, prompt: str, completion: str, reasoning: str, answer: str
) -> None:
    tokenizer = build_tokenizer()
    prompt_ids, token_ids = tokenizer(prompt).input_ids, tokenizer(completion).input_ids
    found = find_thinking(token_ids, tokenizer, prompt_ids)
    assert found == (len(tokenizer(reasoning).input_ids), answer)


@pytest.mark.parametrize("kind", ["special", "plain"])
def test_markers_that_are_single_tokens(build_tokenizer: Build, kind: str) -> None:
    tokenizer = build_tokenizer(**{kind: ("<think>", "</think>")})
    token_ids = tokenizer("<think>so</think>42<|im_end|>").input_ids
    assert len(token_ids) == 7
    assert find_thinking(token_ids, tokenizer) == (4, "42")


def test_an_end_token_inside_an_open_block_counts_as_reasoning(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer(special=("<think>", "</think>"))
    assert find_thinking(tokenizer("<think>so<|im_end|>").input_ids, tokenizer) == (4, "")


def test_special_tokens_are_left_out_of_an_answer_without_thinking(build_tokenizer: Build) -> None:
    tokenizer = build_tokenizer()
    assert find_thinking(tokenizer("42<|im_end|>").input_ids, tokenizer) == (0, "42")


def test_characters_spelled_in_several_byte_tokens() -> None:
    text = "😀<think>😀</think>4"
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {character: 256 + index for index, character in enumerate(sorted(set(text)))}
    del vocabulary["😀"]
    backend = Tokenizer(BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    token_ids = tokenizer(text).input_ids
    assert len(token_ids) == 4 + 7 + 4 + 8 + 1
    assert find_thinking(token_ids, tokenizer) == (7 + 4 + 8, "😀4")
