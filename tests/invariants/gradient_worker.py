"""One rank of test_ranks: the summed gradient of fixed groups, then three updates; rank 0 writes them.

Run by a launcher as `python -m tests.invariants.gradient_worker FOLDER BUDGET SHORT_RANK`: memory runs out
once on that rank, in its second pass; on none with −1.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rft.packing import PackedBatch
from rft.policy import Policy, Scored
from rft.training.advantages import advantages
from rft.training.batch import training_groups
from rft.training.ranks import Ranks
from rft.training.update import Updater
from tests.invariants.test_gradients import sample_groups
from tests.jobs import resolved_job
from tests.tiny import tiny_policy


def note_passes(policy: Policy, is_short: bool) -> list[int]:
    """The packed tokens of each pass that the rank makes, as it makes them."""
    passes: list[int] = []
    score = policy.score

    def noted(batch: PackedBatch, temperature: float) -> Scored:
        passes.append(batch.num_tokens)
        if is_short and len(passes) == 2:
            torch.empty(10**17, dtype=torch.uint8)  # a real failure of the allocator
        return score(batch, temperature)

    policy.score = noted  # type: ignore[method-assign]
    return passes


def main(folder: Path, budget: int, short_rank: int) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(use_cpu=True)
    policy = tiny_policy()
    passes = note_passes(policy, ranks.rank == short_rank)
    job = resolved_job(
        "engine.training.learning_rate=2e-4", f"engine.training.token_budget={budget}"
    )
    updater = Updater(job, policy, ranks, 10, sampler_is_exact=True)
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    sums = updater.accumulate_gradients(1, members, None)
    first_passes = list(passes)
    tensors = {f"gradient.{n}": p.grad.clone() for n, p in policy.parameters().items()}
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    for parameter in policy.parameters().values():
        parameter.grad = None
    for step in (1, 2, 3):
        updater.update(step, members, None)
    for name, parameter in policy.parameters().items():
        tensors[f"update.{name}"] = parameter.detach() - before[name]
    told = ranks.gather([{"rank": ranks.rank, "passes": first_passes}])
    if ranks.is_main:
        save_file(tensors, folder / "tensors.safetensors")
        facts = {
            "size": ranks.size,
            "backend": ranks.backend,
            "ranks": told,
            "loss": sums.loss,
            "num_input_tokens": sums.num_input_tokens,
            "token_budget": updater.passes.token_budget,
        }
        (folder / "facts.json").write_text(json.dumps(facts))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
