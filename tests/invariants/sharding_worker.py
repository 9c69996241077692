"""One rank of test_sharding: a sharded base put to all its uses; what each rank found is written.

Run by a launcher as `python -m tests.invariants.sharding_worker FOLDER DEVICE`; FOLDER holds `base`,
`start` (an adapter) and gets `rank_N.safetensors`, `facts.json` and `adapter`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rft.job import ModelSettings
from rft.models import find_model
from rft.packing import pack
from rft.policy import LoraShape, Policy, continued_policy, new_policy
from rft.training.advantages import advantages
from rft.training.batch import training_groups
from rft.training.ranks import Ranks
from rft.training.setup import load_base
from rft.training.update import Updater
from tests.invariants.test_gradients import GROUPS, TEMPERATURE, gradients, sample_groups
from tests.jobs import resolved_job
from tests.tiny import make_adapter_large, save_tiny_model

SETTINGS = ("engine.training.learning_rate=2e-4", "engine.training.token_budget=30")
"""A micro-batch then holds one group, so that ranks have unequally many, and one of four has none."""
DTYPES = {"float32": False, "bfloat16": True}
"""Number format of the base → whether layers are checkpointed."""


def main(folder: Path, device: str) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(use_cpu=device == "cpu")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    tensors, facts = exercise(folder, device, "fsdp", ranks)
    save_file(tensors, folder / f"rank_{ranks.rank}.safetensors")
    told = ranks.gather([facts])
    if ranks.is_main:
        document = {
            "size": torch.distributed.get_world_size(),
            "backend": torch.distributed.get_backend(),
            "ranks": told,
        }
        (folder / "facts.json").write_text(json.dumps(document))
    ranks.close()


def exercise(
    folder: Path, device: str, sharding: str, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a job does with a base, and what this process holds and did of it."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for dtype, checkpointing in DTYPES.items():
        base, facts[f"{dtype} digest"] = base_and_digest(folder, dtype, sharding, device)
        policy = new_policy(base, LoraShape(rank=4, alpha=8), 0, checkpointing)
        make_adapter_large(policy)
        facts[dtype] = shares(policy)
        tensors |= {f"{dtype}.{n}": t for n, t in logprobs(policy).items()}
        for kl in (0.0, 0.1):
            passes, found = trained(policy, ranks, kl)
            facts[f"{dtype} passes at kl {kl}"] = passes
            tensors |= {f"{dtype}.kl {kl}.{name}": tensor for name, tensor in found.items()}
        if dtype == "float32":
            if ranks.is_main:
                policy.save_adapter(folder / "adapter")
            tensors["reloaded"] = reloaded(policy)
    policy = continued_policy(open_base(folder, "float32", sharding, device), folder / "start")
    make_adapter_large(policy)
    tensors |= {f"continued.{name}": tensor for name, tensor in logprobs(policy).items()}
    return tensors, facts


def whole_tensors(folder: Path, device: str) -> dict[str, Tensor]:
    """What one process finds with the whole base, through the same modules of base and adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "merges_exactly", False)
        tensors, _ = exercise(folder, device, "none", Ranks(use_cpu=device == "cpu"))
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def prepare(folder: Path) -> Path:
    """A base, and an adapter to continue from."""
    save_tiny_model(folder / "base")
    start = new_policy(open_base(folder, "float32", "none", "cpu"), LoraShape(rank=4, alpha=8), 5)
    make_adapter_large(start, seed=2)
    start.save_adapter(folder / "start")
    return folder


def open_base(folder: Path, dtype: str, sharding: str, device: str) -> PreTrainedModel:
    """The model in `folder`, as a job loads it."""
    return base_and_digest(folder, dtype, sharding, device)[0]


def base_and_digest(
    folder: Path, dtype: str, sharding: str, device: str
) -> tuple[PreTrainedModel, str]:
    """The same, and what the job knows it again by."""
    source = find_model(str(folder / "base"), runs_folder=folder)
    settings = ModelSettings.model_validate({"sharding": sharding})
    return load_base(source, settings, dtype, device)


def shares(policy: Policy) -> dict[str, Any]:
    """What this process holds of the base, in numbers."""
    base = dict(policy.base.named_parameters())
    split = {name: tensor for name, tensor in base.items() if isinstance(tensor, DTensor)}
    return {
        "own": sum(tensor.to_local().numel() for tensor in split.values()),
        "all": sum(tensor.numel() for tensor in split.values()),
        "stored": sum(tensor.to_local().untyped_storage().nbytes() for tensor in split.values()),
        "itemsize": next(iter(split.values())).dtype.itemsize if split else 0,
        "whole": sorted(n for n in base if n not in split and ".lora_" not in n),
        "split lora": sorted(name for name in split if ".lora_" in name),
        "merges": policy.merges_exactly,
    }


def logprobs(policy: Policy) -> dict[str, Tensor]:
    """Of fixed completions, and under the reference."""
    batch = pack(GROUPS, policy.device)
    with torch.no_grad():
        scored = policy.score(batch, TEMPERATURE)
    reference = policy.reference_logprobs(batch, TEMPERATURE)
    return {
        "logprobs": scored.logprobs,
        "entropies": scored.entropies,
        "reference": reference,
    }


def trained(policy: Policy, ranks: Ranks, kl: float) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Passes that this rank made, and anchors, gradient and the change by three updates of fixed groups.

    The adapter is put back as it was.
    """
    job = resolved_job(*SETTINGS, f"engine.training.kl_coefficient={kl}")
    updater = Updater(job, policy, ranks, 10, sampler_is_exact=False)
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    passes = {"own": 0, "all": 0}

    def count(_: torch.nn.Module, __: Any, arguments: dict[str, Any]) -> None:
        passes["all"] += 1
        passes["own"] += arguments["input_ids"].numel() > 1

    hook = policy.base.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    anchors = updater.anchors(members)
    rows = [torch.tensor(row) for ordinal in sorted(anchors) for row in anchors[ordinal]]
    found = {"anchors": torch.cat(rows)}
    sums = updater.accumulate_gradients(1, members, anchors)
    found["sums"] = torch.tensor([sums.loss, sums.kl, sums.num_tokens, sums.entropy])
    found |= {f"gradient.{name}": tensor for name, tensor in gradients(policy).items()}
    for step in (1, 2, 3):
        updater.update(step, members, anchors)
    hook.remove()
    for name, parameter in policy.parameters().items():
        found[f"update.{name}"] = parameter.detach() - before[name]
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            parameter.copy_(before[name])
    policy.refresh()
    return passes, found


def reloaded(policy: Policy) -> Tensor:
    """Logprobs after the adapter was changed and its saved weights were loaded again."""
    saved = {name: tensor.detach().clone() for name, tensor in policy.adapter_tensors().items()}
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(3)
    policy.load_adapter(saved)
    return logprobs(policy)["logprobs"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
