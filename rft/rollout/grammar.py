"""Which tokens a JSON schema lets a completion go on with, by llguidance.

B rows, V vocabulary (the head's width, which may exceed the tokenizer's).
"""

import functools
import json
from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rft.errors import ModelError
from rft.job.response_format import WHITESPACE
from rft.models.thinking import MARKERS, closed_by, opened_by

REVERSED_BITS = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
"""llguidance counts the bits of a byte from the lowest, `numpy.packbits` from the highest."""

OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}
"""Of the JSON: one blank at most, and no \\u escapes, which could write half a character."""


class Grammars:
    """What JSON schemas allow under one tokenizer; each is compiled once."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Collection[int],
        vocabulary_size: int,
        num_threads: int,
    ):
        self._tokenizer = tokenizer
        self._end_token_ids = sorted(end_token_ids)
        self._vocabulary_size = vocabulary_size
        self._num_threads = num_threads
        self._compiled: dict[str, LLMatcher] = {}

    def start(self, schema: str, prompt_ids: Sequence[int], may_think: bool = True) -> LLMatcher:
        """A matcher at the beginning of a completion: JSON of that schema, then an end token; before it a thinking
        block where the prompt has opened one or the model knows how to, empty unless it `may_think`.

        Raises ModelError where the tokenizer or the schema rules that out.
        """
        grammar = self._grammar(schema, prompt_ids, may_think)
        if grammar not in self._compiled:
            self._compiled[grammar] = self._compile(grammar)
        return self._compiled[grammar].deep_copy()

    def allowed(self, matchers: Sequence[LLMatcher]) -> NDArray[np.uint8]:
        """(B, ceil(V / 8)) bits in `numpy.packbits` order: the tokens each completion may go on with.

        A matcher that is over its limits is then in error, and allows the end tokens alone.
        """
        bits = allocate_token_bitmask(len(matchers), self._vocabulary_size)
        numbered = [(matcher, row) for row, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(self._executor, numbered, bits)
        width = -(-self._vocabulary_size // 8)
        packed: NDArray[np.uint8] = REVERSED_BITS[bits.view(np.uint8)[:, :width]]
        return packed

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._known_tokenizer, grammar, log_level=0)
        trial = matcher.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise ModelError(
                f"completions cannot be held to this schema: {_one_line(trial.get_error())}",
                where="method.reinforcement.response_format",
                remedy="simplify the schema",
            )
        return matcher

    @functools.cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(num_threads=self._num_threads)

    @functools.cached_property
    def _known_tokenizer(self) -> LLTokenizer:
        try:
            return from_tokenizer(self._tokenizer, self._vocabulary_size, self._end_token_ids)
        except ValueError as error:
            raise ModelError(
                f"a response_format cannot be enforced with this tokenizer: {_one_line(str(error))}",
                where="method.reinforcement.response_format",
                remedy="take a model with a fast tokenizer, or remove the response_format",
            ) from error

    def _grammar(self, schema: str, prompt_ids: Sequence[int], may_think: bool) -> str:
        """In llguidance's Lark."""
        spaced = {**json.loads(schema), "x-guidance": OPTIONS}
        rules = [f"answer: %json {json.dumps(spaced)}", "BLANK: /[ \\n]{1,4}/", "TEXT: /(?s:.*)/"]
        opened = opened_by(prompt_ids, self._tokenizer)
        if opened is not None and not may_think:
            rules += [f"start: {self._literal(MARKERS[opened])} BLANK? answer"]
        elif opened is not None:
            rules += [f"start: thought BLANK? answer\n{self._thought(opened)}"]
        elif not may_think or closed_by(prompt_ids, self._tokenizer) or not self._known_marker:
            rules += ["start: answer"]
        else:
            known = self._known_marker
            opening = self._literal(known)
            rules += [f"start: ({opening} thought BLANK?)? answer\n{self._thought(known)}"]
        return "\n".join(rules)

    def _thought(self, opening: str) -> str:
        """The rule of a thinking block behind its opening marker."""
        closing = MARKERS[opening]
        if self._control_id(closing) is not None:
            return f"thought: TEXT {self._literal(closing)}"
        return f"thought[suffix={json.dumps(closing)}]: TEXT"

    def _literal(self, marker: str) -> str:
        control_id = self._control_id(marker)
        return json.dumps(marker) if control_id is None else f"<[{control_id}]>"

    def _control_id(self, marker: str) -> int | None:
        """The token a marker is by itself, which no text matches then."""
        ids = self._tokenizer.encode(marker, add_special_tokens=False)
        is_control = len(ids) == 1 and self._known_tokenizer.is_special_token(ids[0])
        return int(ids[0]) if is_control else None

    @functools.cached_property
    def _known_marker(self) -> str | None:
        """The marker that the model opens a thinking block with, by its tokens or its template; None: it has none."""
        template = str(getattr(self._tokenizer, "chat_template", None) or "")
        known = (m for m in MARKERS if self._control_id(m) is not None or m in template)
        return next(known, None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
