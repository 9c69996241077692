"""One rank of test_ranks: the summed gradient of fixed groups, then three updates; rank 0 writes them.

Run by a launcher as `python -m tests.invariants.gradient_worker FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rft.training.advantages import advantages
from rft.training.batch import training_groups
from rft.training.ranks import Ranks
from rft.training.update import Updater
from tests.invariants.test_gradients import sample_groups
from tests.jobs import resolved_job
from tests.tiny import tiny_policy


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(use_cpu=True)
    policy = tiny_policy()
    job = resolved_job("engine.training.learning_rate=2e-4")
    updater = Updater(job, policy, ranks, 10, sampler_is_exact=True)
    groups = sample_groups()
    members = training_groups(groups, advantages(groups, "group"), mask_truncated=False)
    sums = updater.accumulate_gradients(1, members, None)
    tensors = {f"gradient.{n}": p.grad.clone() for n, p in policy.parameters().items()}
    before = {name: p.detach().clone() for name, p in policy.parameters().items()}
    for parameter in policy.parameters().values():
        parameter.grad = None
    for step in (1, 2, 3):
        updater.update(step, members, None)
    for name, parameter in policy.parameters().items():
        tensors[f"update.{name}"] = parameter.detach() - before[name]
    mine = [one.ordinal for one in ranks.share([m for m in members if m.has_signal])]
    told = ranks.gather([{"rank": ranks.rank, "groups": mine}])
    if ranks.is_main:
        save_file(tensors, folder / "tensors.safetensors")
        facts = {"size": ranks.size, "backend": ranks.backend, "ranks": told, "loss": sums.loss}
        (folder / "facts.json").write_text(json.dumps(facts))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
