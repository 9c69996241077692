"""The vLLM sampler: the policy's adapter on one or several vLLMs, completions by token ids."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from rft.errors import JobError, JobFailedError, RftError
from rft.policy import Policy
from rft.rollout.randomness import uniforms
from rft.rollout.sampler import Sampled, SampleRequest, SamplingSettings
from rft.rollout.transcribe import Transcriber
from rft.rollout.vllm_canary import canary_pairs, trainer_logprobs
from rft.rollout.vllm_replica import Answer, Ask, Replica
from rft.rollout.vllm_sync import AdapterSync
from rft.types import Completion

T = TypeVar("T")


@runtime_checkable
class Peers(Protocol):
    """The processes of the job, as `training.ranks.Ranks` knows them."""

    size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks for all."""

    def broadcast(self, value: T) -> T:
        """The main process's value on every one; all must call it."""


class Alone:
    """One process."""

    size = 1
    is_main = True

    def broadcast(self, value: T) -> T:
        return value


@dataclass(frozen=True, slots=True)
class VllmRules:
    """What the job document says of vLLM."""

    num_slots: int
    """Completions asked for side by side."""
    tolerance: float
    """Largest mean difference of a logprob between vLLM and the trainer after a sync, nats."""
    adapter_folder: Path | None = None
    """Where adapters are written for vLLM to read."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose answer it is."""

    request: int
    sample: int


class VllmSampler:
    """Draws from vLLM, which holds the adapter as it was at the last `refresh`.

    The main process writes the adapter, loads it and asks the canary; the others learn its name.
    """

    is_exact = False

    def __init__(
        self,
        policy: Policy,
        transcriber: Transcriber,
        replicas: Sequence[Replica],
        rules: VllmRules,
        peers: Peers | None = None,
    ):
        """Every process must make one. Raises MachineError where vLLM does not record what it draws
        from, JobFailedError where it serves another model."""
        self._policy = policy
        self._transcriber = transcriber
        self._replicas = replicas
        self._rules = rules
        self._peers: Peers = peers or Alone()
        self.pairs = canary_pairs(
            min(len(transcriber.tokenizer), policy.base.get_input_embeddings().weight.shape[0])
        )
        self._sync: AdapterSync | None = None
        if self._peers.is_main:
            self._sync = AdapterSync(replicas, self.pairs, rules.tolerance, rules.adapter_folder)
            weakref.finalize(self, self._sync.close)
        with policy.adapter_off():
            bare = trainer_logprobs(policy, self.pairs)
        self._on_main(lambda sync: sync.examine(bare))
        self.adapter: str = ""
        """The name of the version in use."""
        self.refresh()

    @property
    def facts(self) -> Mapping[str, object]:
        versions = sorted({replica.version for replica in self._replicas})
        return {
            "sampler": "vllm",
            "bitwise": False,
            "vllm": ", ".join(versions),
            "num_replicas": len(self._replicas),
        }

    @property
    def spent(self) -> Mapping[str, float]:
        """Empty: prefill and decode of many requests overlap inside vLLM."""
        return {}

    def share_prefix(self, prefix_ids: Sequence[int]) -> None:
        """vLLM finds by itself what prompts have in common."""

    def refresh(self) -> None:
        """Send the adapter under a new name, and let the canary confirm it before it is used.

        Every process must call it. Raises MachineError, JobFailedError.
        """
        present = trainer_logprobs(self._policy, self.pairs)
        save = self._policy.save_adapter
        self.adapter = self._on_main(lambda sync: sync.publish(present, save))

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        """A request's completions all come from one replica, whose prefix cache holds their prompt."""
        refuse_nucleus(settings.top_p)
        places = [
            _Place(index, sample)
            for index, request in enumerate(requests)
            for sample in range(request.num_samples)
        ]
        calls = [
            (self._replicas[number], batch)
            for number in range(len(self._replicas))
            for batch in self._batches(number, places)
        ]
        with self._calling(min(len(calls), self._rules.num_slots)) as call:
            waiting: dict[Future[list[Answer]], list[_Place]] = {}
            for replica, batch in calls:
                asks = [self._ask(requests[p.request], p.sample, settings) for p in batch]
                waiting[call(replica, asks)] = batch
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    for place, answer in zip(waiting.pop(done), done.result(), strict=True):
                        prompt_ids = requests[place.request].prompt_ids
                        completion = self._completion(prompt_ids, answer, settings)
                        yield Sampled(place.request, place.sample, completion)

    def _batches(self, number: int, places: Sequence[_Place]) -> Iterator[list[_Place]]:
        """What replica `number` is asked for, a list per call."""
        mine = [place for place in places if place.request % len(self._replicas) == number]
        size = self._replicas[number].asks_per_call or max(1, len(mine))
        for start in range(0, len(mine), size):
            yield mine[start : start + size]

    @contextmanager
    def _calling(
        self, num_threads: int
    ) -> Iterator[Callable[[Replica, list[Ask]], "Future[list[Answer]]"]]:
        """Calls in threads; when the caller is interrupted or one fails, the others are ended."""
        adapter = self.adapter
        pool = ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="vllm")
        try:
            yield lambda replica, asks: pool.submit(replica.complete, asks, adapter)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for replica in self._replicas:
                replica.close()
            raise
        pool.shutdown()

    def _ask(self, request: SampleRequest, sample: int, settings: SamplingSettings) -> Ask:
        return Ask(
            request.prompt_ids,
            seed_of(request, sample),
            settings.temperature,
            settings.max_tokens,
            settings.stop,
            tuple(sorted(self._transcriber.end_token_ids)),
        )

    def _completion(
        self, prompt_ids: tuple[int, ...], answer: Answer, settings: SamplingSettings
    ) -> Completion:
        """The answer up to the token that ends it by our own rule; vLLM's word where none does."""
        token_ids, reason = answer.token_ids, answer.finish_reason
        for end in range(1, len(token_ids) + 1):
            if found := self._transcriber.finish_reason(token_ids[:end], settings):
                token_ids, reason = token_ids[:end], found
                break
        logprobs = answer.logprobs[: len(token_ids)]
        return self._transcriber.completion(token_ids, logprobs, reason, prompt_ids, settings)

    def _on_main(self, act: Callable[[AdapterSync], T]) -> T:
        """What the main process makes of it, on every process; its error too: none may wait for a rest."""
        outcome: T | RftError | None = None
        if self._sync is not None:
            try:
                outcome = act(self._sync)
            except RftError as error:
                outcome = error
            except Exception as error:
                outcome = _unexpected(error)
                outcome.__cause__ = error
        shared = self._peers.broadcast(outcome)
        if isinstance(shared, RftError):
            raise shared
        return shared  # type: ignore[return-value]


def _unexpected(error: Exception) -> RftError:
    reason = " ".join(str(error).split())
    return JobFailedError(
        f"the adapter did not get to vLLM: {type(error).__name__}: {reason}",
        where="engine.rollout.vllm",
        remedy="mend what it names, such as room on the disk, then rft train --resume",
    )


def seed_of(request: SampleRequest, sample: int) -> int:
    """The counted randomness of a completion as one seed: its first uniform, 53 bits."""
    (point,) = uniforms(
        request.seed, request.purpose, request.step, request.ordinal, sample, 1
    ).tolist()
    return int(point * 2**53)


def refuse_nucleus(top_p: float) -> None:
    """vLLM does not say which tokens were left out, so their probability cannot be trained with."""
    if top_p != 1:
        raise JobError(
            f"top_p {top_p:g} with engine vllm",
            where="engine.rollout.top_p",
            remedy="leave it at 1, or take engine native",
        )
