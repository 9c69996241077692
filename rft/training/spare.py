"""Passes of weight zero, that keep the processes of a sharded base in step.

Each pass of a sharded base is collective (rft.sharding), so a process with fewer micro-batches than another
makes as many passes: its last ones are over one token and add exactly nothing.
"""

import torch

from rft.packing import TokenGroup, pack
from rft.policy import Policy
from rft.training.ranks import Ranks


def num_spare_passes(policy: Policy, ranks: Ranks, num_micro_batches: int) -> int:
    """How many micro-batches fewer than another rank this one has; collective where it matters, else 0."""
    if not policy.is_sharded:
        return 0
    return max(ranks.gather([num_micro_batches])) - num_micro_batches


def spare_pass(policy: Policy, has_reference: bool) -> None:
    """The passes of one micro-batch of an update, or under `no_grad` of one that is only scored."""
    packed = pack([TokenGroup((0,), ((0,),))], policy.device)
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if has_reference and torch.is_grad_enabled():
            policy.reference_logprobs(packed, temperature=1.0)
        logprobs = policy.score(packed, temperature=1.0).logprobs
        if torch.is_grad_enabled():
            (0.0 * logprobs.sum()).backward()  # type: ignore[no-untyped-call]
