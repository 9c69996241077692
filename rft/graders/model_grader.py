"""What graders by a model share: the messages, the judge, and how a reply becomes a grade."""

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rft.errors import GraderError, Problem
from rft.graders.calls import Calls
from rft.graders.fault import GradingFault
from rft.graders.grader import (
    Document,
    Grader,
    GradingSettings,
    grade_of_error,
)
from rft.graders.json_schema import unenforceable
from rft.graders.judge import Judge, JudgeReply, JudgeRequest, JudgeSettings
from rft.graders.judge_http import HttpJudge, completions_url, url_problems
from rft.graders.judge_prompt import JudgePrompt, MessageTemplate, fill_in
from rft.graders.judge_reply import reply_schema
from rft.graders.template import Template, field_problems, parse_template
from rft.types import Grade, Item, Sample

LOCAL = "local:"
JUDGE_KEY = "engine.grading.judge"
MOST_WEIGHED = 16
"""Replies that are weighed; of more one is written."""
OPENAI_URL = "https://api.openai.com/v1"


class JudgePart(BaseModel):
    """A mapping within a model grader."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class TextBlock(JudgePart):
    """A piece of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str


def text_of_content(content: Any) -> Any:
    """Text blocks as one text, templates included."""
    blocks = [content] if isinstance(content, Mapping) else content
    if not isinstance(blocks, list | tuple):
        return content
    texts = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind in ("input_image", "input_audio", "image_url"):
            raise ValueError(f"content of type {kind} is not built yet → keep to text")
        texts.append(TextBlock.model_validate(block).text)
    return "".join(texts)


class InputMessage(JudgePart):
    """A message to the judge."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: Annotated[
        str,
        BeforeValidator(text_of_content, json_schema_input_type=str | TextBlock | list[TextBlock]),
    ]
    """A template, or text blocks that hold one."""
    type: Literal["message"] = "message"
    """Always message."""


class SamplingParams(JudgePart):
    """How the judge samples; what is not given is the server's default."""

    seed: int | None = None
    """For servers that can repeat themselves."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Sampling temperature; a judge in this process takes the likeliest reply without one, or weighs them."""
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    """Limit of the reply; max_completion_tokens and max_tokens are read as this."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """For reasoning models."""


def with_one_limit(value: Any) -> Any:
    """Other spellings of the limit, under the product's own name."""
    if not isinstance(value, Mapping):
        return value
    spelled = [key for key in ("max_completion_tokens", "max_tokens") if key in value]
    if len(spelled) != 1 or "max_completions_tokens" in value:
        return value
    rest = {key: item for key, item in value.items() if key not in spelled}
    return {**rest, "max_completions_tokens": value[spelled[0]]}


class ModelGrader(Document):
    """A grader that asks a model."""

    model: str = Field(min_length=1)
    """A model of the server; or local:base, the policy's base model without its adapter; or local:NAME, any
    model that `model` of a job may name. The local ones answer in this process."""
    input: tuple[InputMessage, ...] = Field(min_length=1)
    """The conversation that the judge answers; its texts are templates."""
    sampling_params: Annotated[SamplingParams, BeforeValidator(with_one_limit)] = SamplingParams()
    """How the judge samples."""
    base_url: str | None = None
    """An OpenAI-compatible server, such as http://localhost:8000/v1; null: engine.grading.judge.base_url, or
    OpenAI's."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds its key; null: engine.grading.judge.api_key_env."""

    @property
    def is_local(self) -> bool:
        return self.model.startswith(LOCAL)

    @property
    @abstractmethod
    def schema_name(self) -> str:
        """The name of the structure that the judge is asked for."""

    @property
    @abstractmethod
    def result_schema(self) -> Mapping[str, Any]:
        """The JSON schema of its result."""

    @property
    @abstractmethod
    def results(self) -> tuple[Any, ...]:
        """Those that a judge in this process weighs when it has no room for steps and no temperature."""

    @property
    def weighed_replies(self) -> tuple[str, ...]:
        """The replies with those results, or none where they are not weighed."""
        has_steps = self.reply_schema["properties"]["steps"].get("maxItems") != 0
        if not self.is_local or has_steps or self.sampling_params.temperature:
            return ()
        if len(self.results) > MOST_WEIGHED:
            return ()
        replies = ({"steps": [], "result": result} for result in self.results)
        return tuple(json.dumps(reply, ensure_ascii=False) for reply in replies)

    @property
    def reply_schema(self) -> Mapping[str, Any]:
        """That structure. A judge in this process keeps to it by its grammar, so there it also fits the limit."""
        if not self.is_local:
            return reply_schema(self.result_schema)
        return reply_schema(self.result_schema, self.sampling_params.max_completions_tokens or 256)

    @abstractmethod
    def reward_of(self, reply: JudgeReply, settings: GradingSettings) -> float:
        """The reward that a reply means; raises GradingFault."""

    def problems(self, where: str) -> list[Problem]:
        problems = []
        for index, message in enumerate(self.input):
            problems += field_problems(message.content, f"{where}.input[{index}].content")
        if self.model == LOCAL:
            what = "local: names no model"
            problems.append(Problem(what, f"{where}.model", "write local:base, or local:NAME"))
        if self.is_local and (reason := unenforceable(self.reply_schema)):
            what = f"the judge's reply could not be held to its structure: {reason}"
            problems.append(Problem(what, where, "use simpler labels or a simpler range"))
        unused = {
            "base_url": self.base_url,
            "api_key_env": self.api_key_env,
            "sampling_params.reasoning_effort": self.sampling_params.reasoning_effort,
        }
        for field, value in unused.items():
            if self.is_local and value is not None:
                what = f"{self.model} answers in this process, where {field} has no use"
                problems.append(Problem(what, f"{where}.{field}", "remove it"))
        return problems

    def settings_problems(self, where: str, settings: GradingSettings) -> list[Problem]:
        if self.is_local:
            return []
        judge = self.judge_settings(settings)
        url = judge.base_url or OPENAI_URL
        place = f"{where}.base_url" if self.base_url is not None else f"{where}.model"
        return url_problems(url, judge.api_key_env, settings.private_hosts, place)

    def warnings(self) -> list[str]:
        if any(template.reads_sample for template in self.templates("input").values()):
            return []
        return [f"{self.name}: no message reads sample.*, so every completion earns the same"]

    def templates(self, where: str) -> dict[str, Template]:
        templates = {}
        for index, message in enumerate(self.input):
            place = f"{where}.input[{index}].content"
            with suppress(GraderError):  # `problems` tells it
                templates[place] = parse_template(message.content, place)
        return templates

    def judge_settings(self, settings: GradingSettings) -> JudgeSettings:
        """Those of the job, with what this grader says itself."""
        shared = settings.judge
        return JudgeSettings(
            self.base_url or shared.base_url,
            self.api_key_env or shared.api_key_env,
            shared.concurrency,
            shared.timeout_seconds,
        )

    def open(self, settings: GradingSettings) -> Grader:
        problems = self.problems(self.name) + self.settings_problems(self.name, settings)
        if problems:
            raise GraderError(problems)
        templates = [
            MessageTemplate(message.role, parse_template(message.content, self.name))
            for message in self.input
        ]
        return OpenModelGrader(self, settings, self._open_judge(settings), templates)

    def _open_judge(self, settings: GradingSettings) -> Judge:
        if self.is_local and self.model not in settings.local_judges:
            raise GraderError(
                f"the judge {self.model} is not loaded here",
                where=self.name,
                remedy="run it where a job loads its models: rft validate --samples, train, grade",
            )
        if self.is_local:
            return settings.local_judges[self.model]
        judge = self.judge_settings(settings)
        url = completions_url(judge.base_url or OPENAI_URL, self.name)
        return HttpJudge(url, self.model, judge, settings.private_hosts)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is kept of a call."""

    reward: float
    usage: Mapping[str, int]
    model: str


class OpenModelGrader(Grader):
    """Fills in the messages, asks, and reads the reply; equal questions are asked once."""

    def __init__(
        self,
        document: ModelGrader,
        settings: GradingSettings,
        judge: Judge,
        templates: list[MessageTemplate],
    ):
        self._document = document
        self._settings = settings
        self._judge = judge
        self._templates = templates
        self._calls: Calls[_Judged] = Calls()

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def type(self) -> str:
        return self._document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        started = time.perf_counter()
        document = self._document
        try:
            prompt = fill_in(self._templates, sample, item)
            if prompt.is_hollow:
                least = document.least_reward(self._settings)
                return Grade(document.name, document.type, least)
            judged, is_mine = self._judged(self._request(prompt))
        except Exception as error:  # a grade is data: whatever went wrong, the job goes on
            latency = time.perf_counter() - started
            least = document.least_reward(self._settings)
            return grade_of_error(document, self._settings, error, latency, least)
        latency = time.perf_counter() - started if is_mine else 0.0
        usage = judged.usage if is_mine else {}
        return Grade(
            document.name,
            document.type,
            judged.reward,
            latency=latency,
            usage=usage,
            model=judged.model,
        )

    def check(self) -> None:
        """Ask one small question, so that a judge that cannot answer is found before a run begins."""
        if self._document.is_local:
            return
        question = "This is a test of the connection. Reply in the structure you are asked for."
        try:
            self._judged(
                self._request(
                    JudgePrompt(({"role": "user", "content": question},), is_hollow=False)
                )
            )
        except GradingFault as error:
            remedies = {
                "model_grader_server_error": f"start it, or correct base_url, model or key ({JUDGE_KEY})",
                "model_grader_parse_error": "take a server and a model with structured outputs (response_format)",
            }
            if error.flag not in remedies:
                return  # it answers; what it says to a test means nothing
            raise GraderError(
                f"the judge {self._document.model} does not answer as asked: {error.details}",
                where=self._document.name,
                remedy=remedies[error.flag],
            ) from None

    def close(self) -> None:
        if not self._document.is_local:
            self._judge.close()

    def _request(self, prompt: JudgePrompt) -> JudgeRequest:
        params = self._document.sampling_params
        return JudgeRequest(
            prompt.messages,
            self._document.schema_name,
            self._document.reply_schema,
            self._document.weighed_replies,
            params.max_completions_tokens,
            params.temperature,
            params.top_p,
            params.seed,
            params.reasoning_effort,
        )

    def _judged(self, request: JudgeRequest) -> tuple[_Judged, bool]:
        is_mine = False

        def call() -> _Judged:
            nonlocal is_mine
            is_mine = True
            reply = self._judge.answer(request)
            try:
                reward = self._document.reward_of(reply, self._settings)
            except GradingFault as error:
                raise GradingFault(
                    error.flag,
                    error.details,
                    of_sample=False,
                    usage=reply.usage,
                    model=reply.model,
                ) from None
            return _Judged(reward, reply.usage, reply.model)

        text = json.dumps([dict(message) for message in request.messages])
        try:
            return self._calls.once(hashlib.sha256(text.encode()).digest(), call)
        except GradingFault as error:
            if is_mine:
                raise
            # who waited for another's call asked for no tokens
            raise GradingFault(
                error.flag, error.details, of_sample=error.of_sample, model=error.model
            ) from None
