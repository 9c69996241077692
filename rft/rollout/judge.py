"""A judge in this process: graders' threads ask, and the thread that owns the models answers all at once."""

import hashlib
import json
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from rft.errors import ModelError
from rft.graders.fault import GradingFault
from rft.graders.judge import JudgeReply, JudgeRequest
from rft.models.chat import RENDERING_ERRORS, ChatTemplate
from rft.models.thinking import opened_by
from rft.rollout.memory import sample_within_memory
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.rollout.weigh import Replies, Weigher, encode_replies
from rft.types import Example

DEFAULT_MAX_TOKENS = 256
INTERRUPTED = "the judge was interrupted"
SETTLING_SECONDS = 0.01
"""Questions that follow one another within it are answered together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """What a grader's thread waits to be told."""

    prompt_ids: tuple[int, ...]
    settings: SamplingSettings
    seed: int
    replies: Replies | None = None
    """Those to be weighed; None: one is sampled."""
    reply: Future[JudgeReply] = field(default_factory=Future)


class LocalJudge:
    """Answers by a sampler, greedily unless a temperature is asked for; or weighs the replies there are.

    An answer depends on its question alone: its uniforms are those of the seed asked for and the prompt.
    Only the thread that made the judge runs the model, by `serve`, or by asking itself.
    """

    def __init__(
        self,
        name: str,
        sampler: Sampler,
        weigher: Weigher,
        template: ChatTemplate,
        context_length: int,
        answering: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        """`weigher`: over the model that the sampler draws from. `answering` gives a context in which that
        answers, such as `Policy.adapter_off`."""
        self._name = name
        self._sampler = sampler
        self._weigher = weigher
        self._template = template
        self._context_length = context_length
        self._answering = answering
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._is_in_session = False
        self._asked: queue.SimpleQueue[_Question] = queue.SimpleQueue()

    def answer(self, request: JudgeRequest) -> JudgeReply:
        """The reply, once the owner has served it; raises GradingFault."""
        question = self._question(request)
        is_owner = threading.get_ident() == self._owner
        with self._lock:
            if not (self._is_in_session or is_owner):
                raise _fault(INTERRUPTED)
            self._asked.put(question)
        if is_owner:
            self.serve(0)
        return question.reply.result()

    @contextmanager
    def in_session(self) -> Iterator[None]:
        """While the body of the `with` runs, other threads may ask; whoever still waits at its end is told that
        nobody answers."""
        with self._lock:
            self._is_in_session = True
        try:
            yield
        finally:
            self.close()

    def serve(self, patience: float) -> bool:
        """Answer what is asked, waiting for it up to `patience` seconds; False when nothing was."""
        questions: list[_Question] = []
        wait = patience
        while True:
            try:
                questions.append(
                    self._asked.get(timeout=wait) if wait > 0 else self._asked.get_nowait()
                )
            except queue.Empty:
                break
            wait = SETTLING_SECONDS if patience > 0 else 0
        try:
            self._reply(questions)
        except BaseException:
            give_up(questions, INTERRUPTED)
            raise
        return bool(questions)

    def close(self) -> None:
        """Nobody is answered any more but the owner."""
        with self._lock:
            self._is_in_session = False
            while not self._asked.empty():
                give_up([self._asked.get_nowait()], INTERRUPTED)

    def _question(self, request: JudgeRequest) -> _Question:
        example = Example(0, request.messages, {})
        try:
            prompt = self._template.prompt(example)
        except RENDERING_ERRORS as error:
            raise _fault(f"the judge's chat template refuses the conversation: {error}") from None
        max_tokens = request.max_tokens or DEFAULT_MAX_TOKENS
        tokenizer = self._template.tokenizer
        opened = opened_by(prompt.token_ids, tokenizer)
        replies = encode_replies(request.replies, tokenizer, opened) if request.replies else None
        room = self._context_length - len(prompt.token_ids)
        needed = replies.num_tokens if replies else 1
        if room < needed:
            raise GradingFault(
                "model_grader_exceeded_max_tokens_error",
                f"the judge's prompt has {len(prompt.token_ids)} tokens and its reply needs {needed}, but "
                f"the model's context has {self._context_length}",
                of_sample=False,
            )
        settings = SamplingSettings(
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None or not request.temperature else request.top_p,
            max_tokens=min(max_tokens, room),
            keeps_allowed_tokens=False,
            schema=json.dumps(request.schema),
            may_think=False,
        )
        return _Question(prompt.token_ids, settings, (request.seed or 0) % 2**64, replies)

    def _reply(self, questions: Sequence[_Question]) -> None:
        weighed = [question for question in questions if question.replies is not None]
        if weighed:
            try:
                self._weigh(weighed)
            except ModelError as error:
                give_up(weighed, str(error))
        together: defaultdict[SamplingSettings, list[_Question]] = defaultdict(list)
        for question in questions:
            if question.replies is None:
                together[question.settings].append(question)
        for settings, alike in together.items():
            requests = [
                SampleRequest(q.prompt_ids, 1, q.seed, Purpose.JUDGE, 0, _number_of(q.prompt_ids))
                for q in alike
            ]
            try:
                with self._answering():
                    for sampled in sample_within_memory(self._sampler, requests, settings):
                        question = alike[sampled.request]
                        question.reply.set_result(self._told(question, sampled))
            except ModelError as error:
                give_up(alike, str(error))

    def _weigh(self, questions: Sequence[_Question]) -> None:
        asked = [(q.prompt_ids, q.replies) for q in questions if q.replies is not None]
        with self._answering():
            weighed = zip(questions, asked, self._weigher.probabilities(asked), strict=True)
            for question, (prompt_ids, replies), probabilities in weighed:
                question.reply.set_result(
                    JudgeReply(
                        replies.texts[probabilities.index(max(probabilities))],
                        "stop",
                        usage={"prompt_tokens": len(prompt_ids), "completion_tokens": 0},
                        model=self._name,
                        probabilities=probabilities,
                    )
                )

    def _told(self, question: _Question, sampled: Sampled) -> JudgeReply:
        completion = sampled.completion
        usage = {
            "prompt_tokens": len(question.prompt_ids),
            "completion_tokens": len(completion.token_ids),
        }
        return JudgeReply(
            completion.output_text, completion.finish_reason, usage=usage, model=self._name
        )


def give_up(questions: Sequence[_Question], why: str) -> None:
    """Tell those who still wait that there is no answer."""
    for question in questions:
        if not question.reply.done():
            question.reply.set_exception(_fault(why))


def _fault(details: str) -> GradingFault:
    return GradingFault("model_grader_server_error", details, of_sample=False)


def _number_of(prompt_ids: Sequence[int]) -> int:
    """63 bits of a prompt's digest, in place of an ordinal."""
    digest = hashlib.sha256(json.dumps(prompt_ids).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
