"""Probabilities of the replies to a question: against the model's own forward pass, alone and beside others."""

from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rft.errors import MachineError
from rft.packing import PackedBatch
from rft.policy import BareModel, Policy, Scored
from rft.rollout.invariance import MOST_PROMPT_ROWS, PREFILL_ROW_MULTIPLE, RowInvariance
from rft.rollout.native import NativeSampler
from rft.rollout.transcribe import Transcriber
from rft.rollout.weigh import Replies, Weigher, encode_replies
from tests.tiny import tiny_model, tiny_policy, tiny_tokenizer

TEXTS = ("[0]", "[0.25]", "[1]", '["none"]')
Question = tuple[tuple[int, ...], Replies]


class Watched(BareModel):
    """Notes the rows of its passes."""

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self.rows: list[int] = []
        self.targets: list[int] = []

    def score(self, batch: PackedBatch, temperature: float) -> Scored:
        self.rows.append(batch.input_ids.numel())
        self.targets.append(len(batch.target_ids))
        return super().score(batch, temperature)


def question(text: str, replies: Sequence[str] = TEXTS) -> Question:
    tokenizer = tiny_tokenizer()
    return tuple(tokenizer.encode(text)), encode_replies(replies, tokenizer)


def weigher_of(family: str = "llama") -> tuple[Weigher, Watched]:
    model = Watched(tiny_policy(family))
    sampler = NativeSampler(model, Transcriber(tiny_tokenizer(), [2]), num_slots=8)
    return Weigher(model, sampler.invariance), model


def plain_probabilities(family: str, text: str) -> list[float]:
    """By a forward pass of the untouched model for each whole text."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    prompt_ids = tokenizer.encode(text)
    logprobs = []
    for reply in TEXTS:
        ids = prompt_ids + tokenizer.encode(reply, add_special_tokens=False)
        with torch.no_grad():
            at = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        logprobs.append(sum(at[i - 1, ids[i]] for i in range(len(prompt_ids), len(ids))))
    return torch.stack(logprobs).softmax(0).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_replies_are_as_likely_as_the_model_says(family: str) -> None:
    weigher, _ = weigher_of(family)
    texts = ["Well?", "And then, what is it that you would say to that?"]
    found = list(weigher.probabilities([question(text) for text in texts]))
    for probabilities, text in zip(found, texts, strict=True):
        assert probabilities == pytest.approx(plain_probabilities(family, text), rel=1e-4)
        assert sum(probabilities) == pytest.approx(1)


def test_a_model_that_attends_by_itself_weighs_too() -> None:
    policy = tiny_policy()
    policy.stop_packing("for this test")
    with policy.adapter_off():
        (found,) = Weigher(policy, None).probabilities([question("Well?")])
    assert found == pytest.approx(plain_probabilities("llama", "Well?"), rel=1e-4)


def test_questions_share_passes_and_change_no_bit_of_one_another() -> None:
    weigher, model = weigher_of()
    texts = ["x" * n for n in (1, 90, 17, 200, 33, 150, 64, 600, 2)]
    together = list(weigher.probabilities([question(text) for text in texts]))
    assert 1 < len(model.rows) < len(texts)
    assert all(n % PREFILL_ROW_MULTIPLE == 0 for n in model.rows if n <= MOST_PROMPT_ROWS)
    assert sum(n > MOST_PROMPT_ROWS for n in model.rows) == 1
    assert all(n % 64 == 0 for n in model.targets)
    alone = [next(weigher.probabilities([question(text)])) for text in texts]
    assert together == alone
    assert len(set(together)) == len(texts)


def test_where_rows_depend_on_others_each_question_has_its_pass() -> None:
    model = Watched(tiny_policy())
    weigher = Weigher(model, RowInvariance(4, is_bitwise=False, max_prompt_rows=MOST_PROMPT_ROWS))
    list(weigher.probabilities([question("a"), question("bc")]))
    assert len(model.rows) == 2


def test_when_memory_runs_out_questions_are_weighed_one_by_one() -> None:
    weigher, model = weigher_of()
    asked = [question(text) for text in ("a", "bc", "def")]
    expected = list(weigher.probabilities(asked))
    whole = model.rows.pop()

    class Short(Watched):
        def score(self, batch: PackedBatch, temperature: float) -> Scored:
            if batch.input_ids.numel() >= self.limit:
                raise torch.OutOfMemoryError
            return super().score(batch, temperature)

        limit = whole

    short = Short(tiny_policy())
    assert list(Weigher(short, weigher._invariance).probabilities(asked)) == expected
    assert len(short.rows) == 3
    short.limit = 1
    with pytest.raises(MachineError, match="a single completion"):
        list(Weigher(short, weigher._invariance).probabilities(asked))


def test_without_known_invariance_each_question_has_its_pass() -> None:
    model = Watched(tiny_policy())
    asked = [question("a"), question("bc")]
    list(Weigher(model, None).probabilities(asked))
    assert model.rows == [
        len(p) + len(r.beginning) + sum(len(e) - 1 for e in r.endings) for p, r in asked
    ]


def test_what_replies_share_is_computed_once() -> None:
    tokenizer = tiny_tokenizer()
    replies = encode_replies(TEXTS, tokenizer)
    whole = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]
    assert [replies.beginning + ending for ending in replies.endings] == whole
    assert len(replies.beginning) == 1 and all(replies.endings)
    assert replies.num_tokens == max(map(len, whole))


@pytest.mark.parametrize("texts", [("[1]",), ("[1]", "[1]"), ("[1]", "[1]1")])
def test_every_reply_has_an_ending_of_its_own(texts: tuple[str, ...]) -> None:
    replies = encode_replies(texts, tiny_tokenizer())
    assert all(replies.endings)
    (found,) = weigher_of()[0].probabilities([question("Well?", texts)])
    assert sum(found) == pytest.approx(1) and len(found) == len(texts)
    if len(set(texts)) == 1:
        assert set(found) == {1 / len(texts)}


def test_a_thinking_block_that_the_prompt_opened_is_closed_first() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    (closing,) = tokenizer.encode("</think>")
    free, closed = (encode_replies(TEXTS, tokenizer, opened) for opened in (None, "<think>"))
    assert closed.beginning == (closing, *free.beginning) and closed.endings == free.endings


def test_no_blank_comes_before_a_reply_where_a_tokenizer_begins_with_one() -> None:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁", *'\n[]0.125none"'])}
    blank_first = Tokenizer(models.BPE(dict(vocabulary), [], unk_token="<unk>"))
    blank_first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=blank_first, unk_token="<unk>")
    assert tokenizer.encode("[1]")[0] == vocabulary["▁"]
    replies = encode_replies(TEXTS, tokenizer)
    assert replies.beginning == (vocabulary["["],)
