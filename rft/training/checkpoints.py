"""The best checkpoints of a run, by validation reward."""

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rft.policy import Policy
from rft.runs.folders import (
    adopt,
    disk_error,
    manifest_faults,
    remove_folder,
    temporary_folder,
)
from rft.runs.layout import RunFolder, steps_in
from rft.training.evaluation import Evaluation

ENTRY = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A checkpoint's place in the order."""

    step: int
    reward: float
    """`valid_reward_mean` of the evaluation at its step."""


def best_first(entries: Sequence[Ranked]) -> list[Ranked]:
    """By reward, the later first among equals."""
    return sorted(entries, key=lambda entry: (entry.reward, entry.step), reverse=True)


class CheckpointStore:
    """`checkpoints/step_N/`: PEFT folders, the best `keep` of all evaluations after step 0.

    The whole folders on disk are the only truth. A new one is whole before an old one goes.
    """

    def __init__(self, folder: RunFolder, keep: int):
        self._folder = folder
        self._keep = keep

    def ranking(self) -> list[Ranked]:
        """What is kept, the best first."""
        entries = []
        for step in steps_in(self._folder.checkpoints):
            path = self._folder.checkpoint(step)
            if manifest_faults(path):
                continue
            entry = json.loads((path / ENTRY).read_text())
            entries.append(Ranked(step, entry["valid_reward_mean"]))
        return best_first(entries)

    def save(self, policy: Policy, evaluation: Evaluation, metrics: Mapping[str, Any]) -> bool:
        """Keep the policy if it is among the best; gives whether it is.

        An evaluation with too many ungraded samples, or no finite mean, never ranks.
        """
        if not evaluation.can_rank:
            return False
        new = Ranked(evaluation.step, evaluation.reward_mean)
        others = [entry for entry in self.ranking() if entry.step != new.step]
        kept = best_first([*others, new])[: self._keep]
        if new not in kept:
            return False
        self._write(policy, new, metrics)
        for entry in others:
            if entry not in kept:
                remove_folder(self._folder.checkpoint(entry.step))
        return True

    def forget_after(self, step: int) -> None:
        """Drop checkpoints of steps that will be computed again."""
        for later in steps_in(self._folder.checkpoints):
            if later > step:
                remove_folder(self._folder.checkpoint(later))

    def _write(self, policy: Policy, new: Ranked, metrics: Mapping[str, Any]) -> None:
        target: Path = self._folder.checkpoint(new.step)
        staging = temporary_folder(target)
        try:
            policy.save_adapter(staging)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise disk_error(_as_disk_error(error), target) from error
        entry = {
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(time.time()),
            "step": new.step,
            "valid_reward_mean": new.reward,
            "metrics": {k: v for k, v in metrics.items() if not k.startswith("timing/")},
        }
        adopt(staging, target, {ENTRY: json.dumps(entry, indent=1).encode() + b"\n"})


def _as_disk_error(error: OSError | SafetensorError) -> OSError:
    """safetensors reports what the disk refused as an error of its own."""
    if isinstance(error, OSError):
        return error
    code = errno.ENOSPC if "no space left" in str(error).lower() else errno.EIO
    return OSError(code, os.strerror(code))
