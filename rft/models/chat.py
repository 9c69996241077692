"""Conversations → prompts, by the tokenizer's own chat template; the tokens that end an answer."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from rft.errors import DataError, ModelError, Problem
from rft.graders.tool_calls import parse_tool_calls
from rft.models.tools import calls_as_text, explain_tools, with_arguments
from rft.types import Example, Message, Prompt, Tool

FIXED_DATE = "26 Jul 2024"
"""What templates that print today's date print instead, so that a run does not change overnight."""

FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%d %B %Y': '26 July 2024'}.get(format, '" + FIXED_DATE + "') }}"
    "{%- endmacro -%}"
)
"""Put before a template, hides the clock that transformers hands to it."""

PROBE = "xqzprobe"
"""A text no template writes by itself."""

PROBE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
PROBE_CALL = {
    "id": "xqzprobe1",  # of the only length that Mistral's templates allow
    "type": "function",
    "function": {"name": PROBE, "arguments": {"argument": PROBE}},
}
PROBE_TURNS: tuple[Message, ...] = (
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]},
    {"role": "tool", "content": f"result{PROBE}", "tool_call_id": "xqzprobe1", "name": PROBE},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "x"},
)
END_TOKENS = re.compile(r"(?:<[^<>\s]*>\s*)+$")
"""What may stand behind an answer."""

SHOWN_PROBLEMS = 20

RENDERING_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError)
"""What a template raises on a conversation it does not allow, or on a mistake of its own."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    *,
    chat_template_kwargs: Mapping[str, Any],
    max_prompt_tokens: int,
    source_name: str,
) -> list[Prompt]:
    """Each example rendered and tokenised, up to where the model is to answer.

    Control tokens that stand in a message are encoded as plain text. Raises ModelError when there
    is no usable template, DataError naming all rows it refuses and all that are too long.
    """
    template = ChatTemplate(tokenizer, chat_template_kwargs)
    prompts, problems = [], []
    for example in examples:
        where = f"{source_name} row {example.row + 1}"
        try:
            prompt = template.prompt(example)
        except RENDERING_ERRORS as error:
            what = f"the chat template refuses this conversation: {_one_line(error)}"
            problems.append(Problem(what, where))
            continue
        if len(prompt.token_ids) > max_prompt_tokens:
            what = f"the prompt has {len(prompt.token_ids)} tokens, more than {max_prompt_tokens}"
            remedy = "shorten it, or raise engine.rollout.max_prompt_tokens"
            problems.append(Problem(what, where, remedy))
        prompts.append(prompt)
    if problems:
        raise DataError(_first_problems(problems, source_name))
    return prompts


def _first_problems(problems: Sequence[Problem], source_name: str) -> list[Problem]:
    shown = list(problems[:SHOWN_PROBLEMS])
    if num_more := len(problems) - len(shown):
        shown.append(Problem(f"… and {num_more} more rows", source_name))
    return shown


class ChatTemplate:
    """A tokenizer's template, and what trying it showed; ModelError when there is no usable one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]):
        self.tokenizer = tokenizer
        self.source = FIXED_CLOCK + template_source(tokenizer)
        self.kwargs = {"date_string": FIXED_DATE, **kwargs}
        try:
            self.render([{"role": "user", "content": PROBE}])
        except RENDERING_ERRORS as error:
            raise ModelError(
                f"the chat template cannot be used: {type(error).__name__}: {_one_line(error)}",
                where="engine.model.chat_template",
                remedy="correct it, or name another one there",
            ) from error
        names_developer = "developer" in template_source(tokenizer)
        self.has_developer = names_developer and self._shows("developer")
        self.has_system = self._shows("system")
        self._form = self._call_form() if self._shows_tools() else None
        self.has_tools = self._form is not None

    def prompt(self, example: Example) -> Prompt:
        """The conversation as the model is to see it; raises one of RENDERING_ERRORS."""
        messages = [self._with_known_role(message) for message in example.messages]
        if any(message["role"] == "system" for message in messages) and not self.has_system:
            raise ValueError("it has no place for a system message; put its text in the user's")
        tools = example.tools if self.has_tools else ()
        told = self._with_tools(messages, example.tools)
        encoded: Any = self.tokenizer.apply_chat_template(
            [dict(message) for message in told],
            tools=list(tools) or None,
            chat_template=self.source,
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            **self.kwargs,
        )
        return Prompt(example, self.render(told, tools=tools), tuple(encoded["input_ids"]))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Tool] = (),
    ) -> str:
        """The conversation as text."""
        rendered: Any = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) or None,
            chat_template=self.source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.kwargs,
        )
        return str(rendered)

    def _with_known_role(self, message: Message) -> dict[str, Any]:
        """`developer` is `system` to a template that does not name it."""
        is_renamed = message["role"] == "developer" and not self.has_developer
        return {**message, "role": "system"} if is_renamed else dict(message)

    def _with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """Tools, calls and results in the form that reaches the model."""
        if self._form is not None:
            return with_arguments(messages, self._form)
        made = calls_as_text(messages)
        return explain_tools(made, tools, self.has_system) if tools else made

    def _shows_tools(self) -> bool:
        """Whether a tool reaches the model."""
        try:
            return PROBE in self.render(PROBE_TURNS[:1], tools=[PROBE_TOOL])
        except RENDERING_ERRORS:
            return False

    def _call_form(self) -> type | None:
        """The form of arguments, `dict` or `str`, in which calls and results reach the model, and calls in
        a form that is read from its answers too; None for neither."""
        for form in (dict, str):
            turns = with_arguments(PROBE_TURNS, form)
            try:
                text = self.render(turns, tools=[PROBE_TOOL])
                answers = self._answers(turns)
            except RENDERING_ERRORS:
                continue
            if f"result{PROBE}" in text and any(map(_is_probe_call, answers)):
                return form
        return None

    def _answers(self, turns: Sequence[Message]) -> Iterator[str]:
        """What the template takes for the answer in the second turn: with what it writes around it, and
        as far as can be told without."""
        whole = self.render(turns[:2], add_generation_prompt=False, tools=[PROBE_TOOL])
        for is_open in (False, True):
            prompt = self.render(turns[:1], add_generation_prompt=is_open, tools=[PROBE_TOOL])
            answer = whole.removeprefix(prompt)
            yield from (answer, END_TOKENS.sub("", answer))

    def _shows(self, role: str) -> bool:
        """Whether a first message of that role reaches the model."""
        first = {"role": role, "content": PROBE}
        try:
            return PROBE in self.render([first, {"role": "user", "content": "x"}])
        except RENDERING_ERRORS:
            return False


def _is_probe_call(answer: str) -> bool:
    """Whether the call of PROBE_TURNS can be read from an answer."""
    functions = [call["function"] for call in parse_tool_calls(answer).calls]
    return functions == [{"name": PROBE, "arguments": json.dumps({"argument": PROBE})}]


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja text of the tokenizer's template; raises ModelError when it has none."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            "this model has no chat template",
            where="engine.model.chat_template",
            remedy="set it to a file or a Jinja text, or take an instruct model",
        ) from error


def end_token_ids(
    model_config: PretrainedConfig,
    generation_config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """The tokens that end an answer, ascending: those the model names, and its template's turn end.

    Raises ModelError when there is none: no answer would ever end.
    """
    named = [
        model_config.get_text_config().eos_token_id,
        generation_config.eos_token_id if generation_config else None,
        tokenizer.eos_token_id,
        turn_end_token_id(tokenizer),
    ]
    lists = [value if isinstance(value, list) else [value] for value in named]
    found = {token_id for values in lists for token_id in values if token_id is not None}
    if not found:
        raise ModelError(
            "this model names no token that ends an answer",
            where="generation_config.json",
            remedy="write its eos_token_id there",
        )
    return tuple(sorted(found))


def turn_end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes right after an assistant's content."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]
    try:
        text = ChatTemplate(tokenizer, {}).render(turns, add_generation_prompt=False)
    except (ModelError, *RENDERING_ERRORS):
        return None
    tail = text.rpartition(PROBE)[2].strip()
    control = {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }
    first = next(iter(tokenizer.encode(tail, add_special_tokens=False)), None)
    return first if first in control else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
