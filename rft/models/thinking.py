"""Where a model thinks before it answers, and what is left as the answer."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

MARKERS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<seed:think>": "</seed:think>",
    "◁think▷": "◁/think▷",
}
"""What opens a block → what closes it, as the families of thinking models write it."""

PROMPT_TAIL = 16
"""Tokens at the end of a prompt among which a template may open a block."""


def find_thinking(
    token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int] = (),
    skip_special_tokens: bool = True,
    only_at_start: bool = False,
) -> tuple[int, str]:
    """Number of tokens in the first thinking block, and the completion's text without the block.

    `only_at_start`: markers further on are text, as within JSON.

    The chat template may have opened the block at the end of the prompt. A block that is never
    closed reaches to the end.
    """
    whole = tokenizer.decode(list(token_ids), skip_special_tokens=False)
    block = find_block(whole, opened_by(prompt_ids, tokenizer), only_at_start)
    if block is None:
        return 0, tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
    start, end = block

    def length_of(num_tokens: int) -> int:
        prefix = tokenizer.decode(list(token_ids[:num_tokens]), skip_special_tokens=False)
        return len(prefix.rstrip("\ufffd"))  # half a character is not there yet

    counts = range(len(token_ids) + 1)
    num_before = bisect_right(counts, start, key=length_of) - 1
    num_through = len(token_ids) if end == len(whole) else bisect_left(counts, end, key=length_of)
    before, after = (
        tokenizer.decode(list(part), skip_special_tokens=skip_special_tokens)
        for part in (token_ids[:num_before], token_ids[num_through:])
    )
    return num_through - num_before, before + after if before.strip() else after.lstrip()


def ends_in_thinking(
    token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int] = (),
    only_at_start: bool = False,
) -> bool:
    """Whether the first thinking block is still open at the end."""
    whole = tokenizer.decode(list(token_ids), skip_special_tokens=False)
    block = find_block(whole, opened_by(prompt_ids, tokenizer), only_at_start)
    return block is not None and not whole[: block[1]].endswith(tuple(MARKERS.values()))


def find_block(
    text: str, opened: str | None, only_at_start: bool = False
) -> tuple[int, int] | None:
    """Where the first block starts and ends, in characters, markers included.

    `opened` is the marker the prompt ended with, if any.
    """
    start = 0
    if opened is None:
        limit = len(text) - len(text.lstrip()) if only_at_start else len(text)
        found = [(place, mark) for mark in MARKERS if 0 <= (place := text.find(mark)) <= limit]
        if not found:
            return None
        start, opened = min(found)
    closing = MARKERS[opened]
    close = text.find(closing, start)
    return (start, len(text)) if close < 0 else (start, close + len(closing))


def opened_by(prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The marker a prompt ends with, when its template has opened a block for the model."""
    tail = _tail(prompt_ids, tokenizer)
    return next((mark for mark in MARKERS if tail.endswith(mark)), None)


def closed_by(prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The marker a prompt ends with, when its template has closed the block too: the model is not to think."""
    tail = _tail(prompt_ids, tokenizer)
    return next((mark for mark in MARKERS.values() if tail.endswith(mark)), None)


def _tail(prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text: str = tokenizer.decode(list(prompt_ids[-PROMPT_TAIL:]), skip_special_tokens=False)
    return text.rstrip()
