"""What memory there is, what is in use, and the most that a step of a job can ask for."""

import math
import os
import resource
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rft.job import ResolvedJob
from rft.policy import Policy
from rft.training.setup import Workshop
from rft.training.sizes import activation_bytes_per_token, kv_bytes_per_token, prompt_copy_cost

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

OPTIMIZER_COPIES = 4
"""Tensors of the adapter's size beside it in an update: gradient, two moments, the values before."""


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device on CUDA, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_memory_bytes(device: torch.device) -> int:
    """Memory held now; where the system does not tell, the most held so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        return peak_memory_bytes(device)
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_memory_bytes(device: torch.device) -> int:
    """What this process could hold at most: the device's memory, or the machine's or container's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else "max"
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def largest_step_bytes(workshop: Workshop, policy: Policy, held: int) -> int:
    """Memory of a step in which every completion has `max_completion_tokens`; an estimate from shapes.

    `held`: memory in use before the sampler was made, weights included. To it come the merged copy of the weights,
    the keys and values of all slots, and, whichever is more, the logits of all slots in the sampler, or an
    update's micro-batch; beside these the optimizer's tensors.
    """
    job, base = workshop.job, workshop.base
    rollout = job.engine.rollout
    longest = max(len(prompt.token_ids) for prompt in workshop.train_prompts)
    row_tokens = longest + rollout.max_completion_tokens
    key_values = rollout.slots * row_tokens * kv_bytes_per_token(base.config, base.dtype)
    vocabulary = int(base.config.get_text_config().vocab_size)
    logits = 3 * rollout.slots * vocabulary * torch.float32.itemsize
    adapter = sum(parameter.nbytes for parameter in policy.parameters().values())
    return (
        held
        + _merged_bytes(policy)
        + key_values
        + max(logits, _micro_batch_bytes(job, base, longest, row_tokens))
        + OPTIMIZER_COPIES * adapter
    )


def _merged_bytes(policy: Policy) -> int:
    """Of the matrices that sampler and trainer have beside the base's own."""
    products = list(policy.merged.products) if policy.uses_merged else []
    if policy.why_unpacked is None and policy.head.product.is_packed:
        products.append(policy.head.product)
    item_size: int = policy.base.dtype.itemsize
    return sum(math.prod(product.shape) for product in products) * item_size


def _micro_batch_bytes(
    job: ResolvedJob, base: PreTrainedModel, longest_prompt: int, row_tokens: int
) -> int:
    """Activations of the largest micro-batch."""
    hyperparameters, rollout, training = (
        job.hyperparameters,
        job.engine.rollout,
        job.engine.training,
    )
    sizes = base.config, base.dtype, training.gradient_checkpointing
    copied = longest_prompt * prompt_copy_cost(*sizes)
    group_tokens = longest_prompt + rollout.group_size * (rollout.max_completion_tokens + copied)
    step_tokens = hyperparameters.batch_size * group_tokens
    num_tokens = min(step_tokens, max(row_tokens + copied, training.token_budget))
    return int(num_tokens * activation_bytes_per_token(*sizes))
