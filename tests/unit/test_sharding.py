"""Sharding in one process: what is refused, what is loaded, and passes that add nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rft.errors import JobError, ModelError
from rft.job import ModelSettings, parse_job
from rft.models import find_model, load_model
from rft.packing import TokenGroup, pack
from rft.policy import LoraShape, new_policy
from rft.sharding import is_sharded, num_processes, shard_base
from rft.training.ranks import Ranks
from rft.training.setup import Rows, open_workshop
from rft.training.spare import num_spare_passes, spare_pass
from tests.jobs import JOB
from tests.tiny import make_adapter_large, save_tiny_model, tiny_model, tiny_policy

FSDP = "engine.model.sharding=fsdp"
VLLM = ("engine.rollout.engine=vllm", "engine.rollout.vllm.servers=[http://localhost:8000]")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((FSDP,), "the native sampler needs the whole base in each process"),
        ((FSDP, *VLLM, "engine.model.quantization=4bit"), "cannot divide weights of quantization"),
    ],
)
def test_a_job_that_cannot_shard_is_refused(overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(JobError, match=reason) as refused:
        parse_job(JOB, name="job.yaml", folder=Path("/nowhere"), overrides=overrides)
    assert refused.value.problems[0].remedy


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    job = parse_job(JOB, name="job.yaml", folder=tmp_path, overrides=(FSDP, *VLLM))
    assert num_processes() == 1
    with pytest.raises(JobError, match="there is only one"):
        open_workshop(job, Rows((), ()), tmp_path)


def test_a_model_without_layers_to_tell_apart_is_refused() -> None:
    base = tiny_model()
    base.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be told apart"):
        shard_base(base, "cpu")


def test_a_base_on_meta_is_the_same_model_without_storage(tmp_path: Path) -> None:
    source = find_model(str(save_tiny_model(tmp_path / "model")), runs_folder=tmp_path)
    real, bare = (
        load_model(source, ModelSettings(), "bfloat16", device) for device in ("cpu", "meta")
    )
    for kind in ("named_parameters", "named_buffers"):
        ours = [(n, t.shape, t.dtype) for n, t in getattr(bare, kind)()]
        assert ours == [(n, t.shape, t.dtype) for n, t in getattr(real, kind)()]
        assert all(tensor.is_meta for _, tensor in getattr(bare, kind)())
    assert bare.get_output_embeddings().weight is bare.get_input_embeddings().weight
    assert bare.generation_config.to_dict() == real.generation_config.to_dict()
    assert not is_sharded(real)


def test_a_spare_pass_leaves_gradients_and_randomness_alone() -> None:
    policy = new_policy(tiny_model(), LoraShape(rank=4, alpha=8, dropout=0.5), 0)
    make_adapter_large(policy)
    batch = pack([TokenGroup((5, 6, 7), ((8, 9), (10, 11, 12)))], policy.device)
    with policy.updating():
        policy.score(batch, 0.8).logprobs.sum().backward()
        before = {name: p.grad.clone() for name, p in policy.parameters().items()}
        state = torch.get_rng_state()
        spare_pass(policy, has_reference=True)
    assert all(torch.equal(p.grad, before[name]) for name, p in policy.parameters().items())
    assert any(gradient.norm() > 0 for gradient in before.values())
    assert torch.equal(torch.get_rng_state(), state)


class BusierRanks(Ranks):
    """Says of every number that another rank has two more."""

    def gather(self, items: Sequence[Any]) -> list[Any]:
        return [*items, items[0] + 2]


def test_only_a_sharded_base_needs_spare_passes() -> None:
    policy, ranks = tiny_policy(), BusierRanks(use_cpu=True)
    assert num_spare_passes(policy, ranks, 3) == 0
    policy.is_sharded = True
    assert num_spare_passes(policy, ranks, 3) == 2
