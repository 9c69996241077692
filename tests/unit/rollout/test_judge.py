"""A judge in this process: who is answered, when, together with whom, and with what."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from rft.graders.fault import GradingFault
from rft.graders.judge import JudgeReply, JudgeRequest
from rft.models.chat import ChatTemplate
from rft.policy import BareModel, Policy
from rft.rollout.judge import LocalJudge
from rft.rollout.native import NativeSampler
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.rollout.weigh import Weigher
from tests.schemas import an_object
from tests.tiny import make_adapter_large, tiny_policy, tiny_tokenizer

SCHEMA = an_object(
    result={"enum": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}, why={"type": "string", "maxLength": 8}
)


class Counting(NativeSampler):
    """Tells how many prompts were sampled together."""

    def __init__(self, policy: Policy | BareModel):
        super().__init__(policy, Transcriber(tiny_tokenizer(), [2]), num_slots=8)
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        self.batches.append(len(requests))
        self.threads.add(threading.get_ident())
        return super().sample(requests, settings)


def judge_of(policy: Policy, context_length: int = 2000) -> tuple[LocalJudge, Counting]:
    bare = BareModel(policy)
    sampler = Counting(bare)
    template = ChatTemplate(tiny_tokenizer(), {})
    weigher = Weigher(bare, sampler.invariance)
    return LocalJudge("local:base", sampler, weigher, template, context_length), sampler


def request(text: str, **settings: object) -> JudgeRequest:
    messages = ({"role": "user", "content": text},)
    return JudgeRequest(messages, "score", SCHEMA, max_tokens=60, **settings)


def test_an_answer_keeps_to_the_schema_and_counts_its_tokens() -> None:
    judge, _ = judge_of(tiny_policy())
    reply = judge.answer(request("How good is it?"))
    assert json.loads(reply.text).keys() == {"result", "why"}
    assert (reply.finish_reason, reply.model, reply.refusal) == ("stop", "local:base", None)
    prompt = ChatTemplate(tiny_tokenizer(), {}).render(
        [{"role": "user", "content": "How good is it?"}]
    )
    assert reply.usage["prompt_tokens"] == len(tiny_tokenizer().encode(prompt))
    assert reply.usage["completion_tokens"] == len(tiny_tokenizer().encode(reply.text)) + 1


def test_the_base_answers_whatever_the_adapter_has_learnt() -> None:
    plain, moved = tiny_policy(), tiny_policy()
    make_adapter_large(moved, seed=5)
    moved.refresh()
    for seed in range(4):
        asked = request("How good?", temperature=1.0, seed=seed)
        assert judge_of(plain)[0].answer(asked) == judge_of(moved)[0].answer(asked)


def test_threads_are_answered_together_by_the_owner_alone() -> None:
    judge, sampler = judge_of(tiny_policy())
    alone = [judge.answer(request(f"Answer {number}?")) for number in range(6)]
    sampler.batches.clear()
    with judge.in_session(), ThreadPoolExecutor(6) as pool:
        replies = [pool.submit(judge.answer, request(f"Answer {number}?")) for number in range(6)]
        while not all(reply.done() for reply in replies):
            judge.serve(0.2)
        assert [reply.result() for reply in replies] == alone
    assert max(sampler.batches) >= 3 and sum(sampler.batches) == 6
    assert sampler.threads == {threading.get_ident()}


def test_who_still_waits_when_a_session_ends_is_told() -> None:
    judge, _ = judge_of(tiny_policy())
    with ThreadPoolExecutor(1) as pool:
        with judge.in_session():
            waiting = pool.submit(judge.answer, request("Well?"))
            while judge._asked.empty():
                pass
        with pytest.raises(GradingFault, match="interrupted") as raised:
            waiting.result(5)
        late = pool.submit(judge.answer, request("Well?"))
        with pytest.raises(GradingFault, match="interrupted"):
            late.result(5)
    assert raised.value.flag == "model_grader_server_error" and not raised.value.of_sample


def test_a_question_beyond_the_context_is_not_asked() -> None:
    judge, sampler = judge_of(tiny_policy(), context_length=20)
    with pytest.raises(GradingFault, match="context") as raised:
        judge.answer(request("A question of more than twenty bytes"))
    assert raised.value.flag == "model_grader_exceeded_max_tokens_error"
    assert not sampler.batches


def test_a_reply_cut_at_its_limit_says_so() -> None:
    judge, _ = judge_of(tiny_policy())
    messages = ({"role": "user", "content": "?"},)
    reply = judge.answer(JudgeRequest(messages, "score", SCHEMA, max_tokens=3))
    assert isinstance(reply, JudgeReply) and reply.finish_reason == "length"


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_any_seed_will_do(seed: int) -> None:
    judge, _ = judge_of(tiny_policy())
    assert judge.answer(request("?", temperature=1.0, seed=seed)).text


def test_draws_differ_by_seed_and_by_question_alone() -> None:
    judge, _ = judge_of(tiny_policy())

    def drawn(text: str, seed: int) -> str:
        return judge.answer(request(text, temperature=1.0, seed=seed)).text

    first = [drawn("a", seed) for seed in range(5)]
    assert first == [drawn("a", seed) for seed in range(5)]
    assert len(set(first)) > 1
    assert first != [drawn("b", seed) for seed in range(5)]


REPLIES = tuple(json.dumps({"steps": [], "result": result}) for result in (0, 0.1, 1, "none"))


def weighed(judge: LocalJudge, text: str) -> JudgeReply:
    messages = ({"role": "user", "content": text},)
    return judge.answer(JudgeRequest(messages, "score", SCHEMA, REPLIES))


def test_the_likeliest_of_weighed_replies_is_the_answer() -> None:
    judge, sampler = judge_of(tiny_policy())
    reply = weighed(judge, "Well?")
    assert reply.text == REPLIES[reply.probabilities.index(max(reply.probabilities))]
    prompt = ChatTemplate(tiny_tokenizer(), {}).render([{"role": "user", "content": "Well?"}])
    num_tokens = len(tiny_tokenizer().encode(prompt))
    assert reply.usage == {"prompt_tokens": num_tokens, "completion_tokens": 0}
    assert (reply.model, reply.finish_reason) == ("local:base", "stop")
    assert not sampler.batches


def test_weights_do_not_depend_on_who_else_asks() -> None:
    judge, _ = judge_of(tiny_policy())
    questions = ["a", "is it?", "how good is the answer that you see here?"]
    alone = [weighed(judge, question) for question in questions]
    assert len({reply.probabilities for reply in alone}) == 3
    with judge.in_session(), ThreadPoolExecutor(4) as pool:
        sampled = pool.submit(judge.answer, request("sampled"))
        replies = [pool.submit(weighed, judge, question) for question in reversed(questions)]
        while not all(reply.done() for reply in [sampled, *replies]):
            judge.serve(0.2)
    assert [reply.result() for reply in reversed(replies)] == alone
    assert sampled.result().probabilities == ()


def test_weighing_needs_room_for_the_longest_reply() -> None:
    prompt = ChatTemplate(tiny_tokenizer(), {}).render([{"role": "user", "content": "?"}])
    room = len(tiny_tokenizer().encode(prompt)) + max(map(len, REPLIES))
    assert weighed(judge_of(tiny_policy(), room)[0], "?").text
    with pytest.raises(GradingFault, match="context") as raised:
        weighed(judge_of(tiny_policy(), room - 1)[0], "?")
    assert raised.value.flag == "model_grader_exceeded_max_tokens_error"


def test_a_model_without_numbers_has_no_answer_and_no_reward() -> None:
    policy = tiny_policy()
    judge, _ = judge_of(policy)
    policy.base.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(GradingFault, match="not finite") as raised:
        weighed(judge, "?")
    assert not raised.value.of_sample
