"""What a step needs: estimates from shapes against what torch really keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import FACTS, JOB, make_completion, make_prompt, make_training_group
from torch import Tensor

import rft.head
import rft.linear
import rft.products
from rft.errors import ModelError
from rft.job import ModelSettings, parse_job, resolve_job
from rft.linear import Product
from rft.models import ModelSource, find_model, load_model
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, Policy, new_policy
from rft.training.batch import cut_to_budget
from rft.training.memory import (
    available_memory_bytes,
    held_memory_bytes,
    largest_step_bytes,
    peak_memory_bytes,
)
from rft.training.setup import Workshop
from rft.training.sizes import (
    activation_bytes_per_token,
    kv_bytes_per_token,
    prompt_copy_cost,
)
from tests.tiny import tiny_model, tiny_policy, tiny_tokenizer

CPU = torch.device("cpu")
SOURCE = ModelSource("tiny", Path("/nowhere"), None, "tiny")
WIDE = {"hidden_size": 192, "intermediate_size": 512, "head_dim": 48, "num_hidden_layers": 4}


def kept_for_backward(
    policy: Policy, num_completions: int, prompt: int = 20, completion: int = 40
) -> tuple[int, int]:
    """Bytes that a pass leaves for its backward pass, weights apart, and its packed tokens."""
    models = [policy.base, policy.merged.model] if policy.merges_exactly else [policy.base]
    weights = {t.data_ptr() for m in models for t in (*m.parameters(), *m.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    completions = (tuple(range(4, 4 + completion)),) * num_completions
    batch = pack([TokenGroup(tuple(5 + n % 40 for n in range(prompt)), completions)], CPU)
    with policy.updating(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        policy.score(batch, 1.0)
    return sum(num_bytes for num_bytes, _ in kept.values()), batch.input_ids.numel()


def measured_per_token(policy: Policy) -> float:
    """What each further token adds."""
    (small, num_small), (large, num_large) = (kept_for_backward(policy, n) for n in (3, 9))
    return (large - small) / (num_large - num_small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral sliding", "gemma"])
def test_activations_of_a_token_are_estimated_from_shapes(family: str, dtype: torch.dtype) -> None:
    base = tiny_model(family, **WIDE).to(dtype)
    policy = new_policy(base, LoraShape(rank=4, alpha=8), 0)
    estimate = activation_bytes_per_token(base.config, dtype)
    assert 0.85 < estimate / measured_per_token(policy) < 1.3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_copies_of_a_long_prompt_are_estimated_from_shapes(
    family: str, checkpointing: bool
) -> None:
    """Each further completion of two tokens keeps the keys and values of 400."""
    base = tiny_model(family, **WIDE, max_position_embeddings=512)
    policy = new_policy(base, LoraShape(rank=4, alpha=8), 0, gradient_checkpointing=checkpointing)
    policy.merged  # noqa: B018
    (small, _), (large, _) = (kept_for_backward(policy, n, 400, 2) for n in (3, 23))
    sizes = base.config, torch.float32, checkpointing
    estimate = (400 * prompt_copy_cost(*sizes) + 1) * activation_bytes_per_token(*sizes)
    if checkpointing:  # copies live in the layer that is computed again
        assert (large - small) / 20 < estimate
    else:
        assert 0.85 < estimate / ((large - small) / 20) < 1.3


@pytest.mark.model
def test_activations_of_the_built_in_model(tmp_path: Path) -> None:
    source = find_model("smollm2-135m-instruct", runs_folder=tmp_path)
    base = load_model(source, ModelSettings(), "float32", "cpu")
    estimate = activation_bytes_per_token(base.config, torch.float32)
    assert estimate == 1_428_480
    assert 0.85 < estimate / measured_per_token(new_policy(base, LoraShape(), 0)) < 1.3


def test_checkpointing_keeps_a_fraction() -> None:
    base = tiny_model(**WIDE)
    policy = new_policy(base, LoraShape(rank=4, alpha=8), 0, gradient_checkpointing=True)
    policy.merged  # noqa: B018  the layers that are checkpointed exist before the pass begins
    estimate = activation_bytes_per_token(base.config, torch.float32)
    assert measured_per_token(policy) < 0.3 * estimate


def workshop_of(*overrides: str, family: str = "llama") -> tuple[Workshop, Policy]:
    base = tiny_model(family, **WIDE)
    job = parse_job(JOB, name="job.yaml", folder=Path("/jobs"), overrides=overrides)
    facts = replace(
        FACTS,
        kv_bytes_per_token=kv_bytes_per_token(base.config, base.dtype),
        activation_bytes_per_token=activation_bytes_per_token(base.config, base.dtype),
    )
    prompts = tuple(make_prompt(row, tuple(range(10, 20 + row))) for row in range(3))
    workshop = Workshop(
        resolve_job(job, facts), SOURCE, "", "", tiny_tokenizer(), base, (2,), prompts, prompts[:1]
    )
    return workshop, new_policy(base, LoraShape(rank=4, alpha=8), 0)


def base_head_bytes(policy: Policy) -> int:
    return policy.head.weight.numel() * 4


def test_the_largest_step_by_hand() -> None:
    """12 prompt and 8 completion tokens; the step has 2 · (12 + 2 · 8) = 56 tokens in one micro-batch, where
    each of the four completions keeps the keys and values of 12 more."""
    workshop, policy = workshop_of("engine.rollout.slots=4")
    kv = 4 * 20 * (2 * 4 * 96 * 4)  # slots · tokens · (2 · layers · width · float32)
    per_token = 4 * 4 * (5 * 192 + 3 * 192 + 6 * 96 + 4 * 512)
    adapter = sum(parameter.numel() for parameter in policy.parameters().values()) * 4
    merged = 4 * (2 * 192**2 + 2 * 192 * 96 + 3 * 192 * 512) * 4
    head = base_head_bytes(policy)
    copies = 4 * 12 * (2 * 4 * 96 * 4)
    expected = 1000 + merged + head + kv + 56 * per_token + copies + 4 * adapter
    assert largest_step_bytes(workshop, policy, held=1000) == expected


@pytest.mark.parametrize("family", ["llama", "phi3 sliding", "gpt_neox"])
def test_a_backward_pass_lays_out_no_matrix_anew(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is asked for down to the embeddings, so that the first layer is as the others."""
    policy = tiny_policy(family)
    _ = policy.head.product, policy.merged
    made: list[tuple[int, ...]] = []

    class Noted(Product):
        def __init__(self, matrix: Tensor, bias: Tensor | None = None):
            super().__init__(matrix, bias)
            made.append(self.shape)

    for module in (rft.head, rft.products, rft.linear):
        monkeypatch.setattr(module, "Product", Noted)
    policy.merged.model.get_input_embeddings().register_forward_hook(
        lambda *io: io[2].requires_grad_()
    )
    batch = pack([TokenGroup((5, 6, 7), ((8, 9), (10, 11)))], CPU)
    with policy.updating():
        policy.score(batch, 1.0).logprobs.sum().backward()
    assert made == []


def test_a_family_whose_head_is_not_known_has_an_estimate_too() -> None:
    workshop, policy = workshop_of(family="recurrent_gemma")
    with pytest.raises(ModelError):
        policy.head  # noqa: B018
    policy.stop_packing("its head is not known")
    assert largest_step_bytes(workshop, policy, held=1000) > 1000


def test_a_smaller_budget_or_checkpointing_makes_the_largest_step_smaller() -> None:
    keys = ("engine.training.token_budget=1", "engine.training.gradient_checkpointing=true")
    sizes = [
        largest_step_bytes(*workshop_of(*overrides), held=0) for overrides in ((), keys[:1], keys)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    # one row of 20 tokens is the least
    workshop, _ = workshop_of(keys[0])
    per_token = activation_bytes_per_token(workshop.base.config, torch.float32)
    copy = 12 * kv_bytes_per_token(workshop.base.config, torch.float32)
    assert sizes[0] - sizes[1] == (56 - 20) * per_token + (4 - 1) * copy


@pytest.mark.parametrize(("group_size", "prompt"), [(16, 250), (8, 300), (8, 500)])
def test_the_automatic_budget_holds_a_group_of_full_lengths(group_size: int, prompt: int) -> None:
    """What resolves it counts as what cuts by it; sizes of the built-in model."""
    facts = replace(
        FACTS,
        longest_prompt=prompt,
        mean_prompt=prompt,
        kv_bytes_per_token=46_080,
        activation_bytes_per_token=1_428_480,
    )
    shape = (
        f"engine.rollout.group_size={group_size}",
        "engine.rollout.max_completion_tokens=64",
        "engine.training.token_budget=auto",
    )
    job = resolve_job(parse_job(JOB, name="job.yaml", folder=Path("/jobs"), overrides=shape), facts)
    completions = [make_completion(range(64))] * group_size
    group = make_training_group(completions, (0.0,) * group_size, prompt_ids=range(prompt))
    budget = job.engine.training.token_budget
    assert cut_to_budget([group], budget, 46_080 / 1_428_480) == [group]
    assert budget > 751  # what the memory set aside for activations alone would give


def test_memory_of_this_machine() -> None:
    held, peak, there = (
        measure(CPU) for measure in (held_memory_bytes, peak_memory_bytes, available_memory_bytes)
    )
    assert (
        50_000_000 < held <= peak + 2**20 < there
    )  # the kernel counts pages of many threads in lots
    block = torch.ones(
        300_000_000
    )  # larger than what may be kept of freed memory for the next block
    assert held_memory_bytes(CPU) - held > 1_000_000_000
    assert peak_memory_bytes(CPU) >= held_memory_bytes(CPU) - 2**20
    del block
