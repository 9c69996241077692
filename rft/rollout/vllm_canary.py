"""Does vLLM answer with the policy that the trainer holds? Asked after each adapter sync.

Both sides give log p(candidate | prompt) for the same fixed prompts and candidates; P·C numbers. A
stale adapter is served without a word otherwise, as more than one trainer found out late.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from rft.errors import JobFailedError, MachineError
from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.rollout.vllm_replica import Replica

Logprobs = NDArray[np.float64]
"""(P·C,) nats."""

NUM_PROMPTS = 8
NUM_CANDIDATES = 16
TEMPERATURE_BESIDE_ONE = 0.5
MOVED_FACTOR = 3.0
"""The policy has moved when it differs from the confirmed version by more than so many times what
vLLM and the trainer differed by there."""
SMALLEST_GAP = 1e-4
"""Nats; what float32 alone may amount to."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The fixed prompts and the tokens that may follow each."""

    prompts: tuple[tuple[int, ...], ...]
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The newest version of the policy that a replica was seen to answer with."""

    trainer: Logprobs
    gap: float
    """Root mean square of what the replica differed by, nats."""


def canary_pairs(num_token_ids: int) -> Pairs:
    """Token ids below `num_token_ids`, spread over all of them."""
    prompts = tuple(
        tuple((row * 7919 + 31 * index + 3) % num_token_ids for index in range(8 + 2 * row))
        for row in range(NUM_PROMPTS)
    )
    count = min(NUM_CANDIDATES, num_token_ids)
    return Pairs(prompts, tuple(index * num_token_ids // count for index in range(count)))


@torch.no_grad()
def trainer_logprobs(policy: Policy, pairs: Pairs) -> Logprobs:
    """What the trainer's own pass says at temperature 1; every rank must call it."""
    completions = tuple((candidate,) for candidate in pairs.candidates)
    groups = [TokenGroup(prompt, completions) for prompt in pairs.prompts]
    policy.refresh()
    scored: Float[torch.Tensor, "B 1"] = policy.score(pack(groups, policy.device), 1.0).logprobs
    return np.asarray(scored[:, 0].double().cpu().numpy())


def replica_logprobs(
    replica: Replica, pairs: Pairs, adapter: str | None, temperature: float = 1.0
) -> Logprobs:
    """The same from vLLM."""
    found = replica.next_logprobs(pairs.prompts, pairs.candidates, temperature, adapter)
    return np.asarray(found, dtype=np.float64).reshape(-1)


def refuse_untempered(replica: Replica, pairs: Pairs) -> None:
    """Raise MachineError unless recorded logprobs are those of the tempered distribution.

    Differences between candidates then grow by 1 / temperature; where vLLM records the raw ones
    (its default), they do not change with it.
    """
    plain = replica_logprobs(replica, pairs, None).reshape(NUM_PROMPTS, -1)
    cooled = replica_logprobs(replica, pairs, None, TEMPERATURE_BESIDE_ONE).reshape(NUM_PROMPTS, -1)
    plain, cooled = (rows - rows.mean(1, keepdims=True) for rows in (plain, cooled))
    growth = float((cooled * plain).sum() / (plain * plain).sum())
    if not abs(growth * TEMPERATURE_BESIDE_ONE - 1) < 0.25:
        raise MachineError(
            f"{replica.place} records logprobs that are not those of the distribution it draws from: "
            f"at temperature {TEMPERATURE_BESIDE_ONE} they differ {growth:.2f} times as at 1, not "
            f"{1 / TEMPERATURE_BESIDE_ONE:g} times",
            where="engine.rollout.vllm",
            remedy="start vLLM with --logprobs-mode processed_logprobs",
        )


def confirm(
    place: str,
    present: Logprobs,
    answered: Logprobs,
    confirmed: Confirmed | None,
    tolerance: float,
) -> Confirmed:
    """What is known of a replica after it `answered`, the trainer's policy being `present`.

    By the triangle inequality a stale replica is nearer to the version it is stuck at, and a fresh one
    to the present, once the two are `MOVED_FACTOR` gaps apart; until then the older version stays the
    confirmed one, so that small moves add up. Raises JobFailedError for a stale adapter, and where
    the mean difference is beyond `tolerance`, nats.
    """
    gap = _rms(answered - present)
    if confirmed is not None:
        moved = _rms(present - confirmed.trainer)
        has_moved = moved > MOVED_FACTOR * max(confirmed.gap, SMALLEST_GAP)
        behind = _rms(answered - confirmed.trainer)
        if has_moved and behind < gap:
            raise JobFailedError(
                f"{place} answers with a stale adapter: its logprobs are {behind:.3g} nats from an "
                f"earlier version of the policy and {gap:.3g} from the present one",
                where="engine.rollout.vllm",
                remedy="restart vLLM without --lora-modules and loading in place, then rft train --resume",
            )
    mean_gap = float(np.abs(answered - present).mean())
    if not mean_gap <= tolerance:
        raise JobFailedError(
            f"{place} and the trainer disagree by {mean_gap:.3g} nats a token (at most {tolerance:g})",
            where="engine.rollout.vllm.tolerance",
            remedy="serve the job's own model, in the trainer's dtype where that can be",
        )
    if confirmed is not None and not has_moved:
        return confirmed
    return Confirmed(present, gap)


def _rms(values: Logprobs) -> float:
    return float(np.sqrt(np.mean(values**2)))
