"""One rank of test_agreement: rank 1 comes late, so that rank 0 waits in the collective, and with an adapter
that differs in one bit; each rank writes what became of it.

Run by a launcher as `python -m tests.invariants.agreement_worker FOLDER`.
"""

import json
import sys
import time
from pathlib import Path

import torch

from rft.errors import MachineError
from rft.policy import Policy
from rft.training.agreement import fingerprint, refuse_drift
from rft.training.hang import HangWatch
from rft.training.ranks import Ranks
from tests.tiny import tiny_policy

TOLD = "told.txt"
LATEST_SECONDS, PATIENCE_SECONDS, POLL_SECONDS = 60.0, 0.3, 0.05


def flip_lowest_bit(policy: Policy) -> None:
    """Change one LoRA number in its last binary digit, the least that can be."""
    parameter = next(iter(policy.parameters().values()))
    with torch.no_grad():
        parameter.view(torch.int32).flatten()[0] ^= 1


def await_told(folder: Path, count: int) -> None:
    """Go on once so many hangs and ends of hangs have been told."""
    give_up_at = time.monotonic() + LATEST_SECONDS
    while num_told(folder) < count and time.monotonic() < give_up_at:
        time.sleep(0.02)


def num_told(folder: Path) -> int:
    told = folder / TOLD
    return len(told.read_text().splitlines()) if told.exists() else 0


def refused(ranks: Ranks, policy: Policy) -> str | None:
    """The error of a rank, None where it agrees."""
    try:
        refuse_drift(
            ranks, fingerprint("model: tiny", "rows", 3, policy.adapter_tensors(), "base", "")
        )
    except MachineError as error:
        return str(error)
    return None


def refused_under_watch(ranks: Ranks, policy: Policy, folder: Path) -> str | None:
    """The same; what the watch has to say of it goes where the other rank sees it."""

    def tell(message: str) -> None:
        with (folder / TOLD).open("a") as stream:
            stream.write(message + "\n")

    with HangWatch(lambda: ranks.num_exchanges, tell, folder, 0, PATIENCE_SECONDS, POLL_SECONDS):
        error = refused(ranks, policy)
        await_told(folder, 2)
    return error


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(use_cpu=True)
    policy = tiny_policy()
    agreed = refused(ranks, policy)
    if ranks.is_main:
        error = refused_under_watch(ranks, policy, folder)
    else:
        flip_lowest_bit(policy)
        await_told(folder, 1)
        error = refused(ranks, policy)
    found = {"size": ranks.size, "backend": ranks.backend, "agreed": agreed, "error": error}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
