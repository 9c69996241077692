"""The best checkpoints of a run, by validation reward, and the one it paused at."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rft.failpoints import reach
from rft.runs import disk
from rft.runs.disk import Content
from rft.runs.documents import json_bytes, read_document
from rft.runs.folders import manifest_faults, verify_folder, write_folder
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

    The whole folders on disk are the only truth. A new one is whole before an old one goes, and an old one
    goes only when `prune` is called: once a state is saved that lies behind the evaluation.
    """

    def __init__(self, folder: RunFolder, keep: int):
        self._folder = folder
        self._keep = keep

    def ranking(self) -> list[Ranked]:
        """What is kept for its reward, the best first."""
        entries = [
            Ranked(step, entry["valid_reward_mean"])
            for step, entry in self._entries().items()
            if entry.get("is_pause") is not True
        ]
        return best_first(entries)[: self._keep]

    def save(
        self, files: Mapping[str, Content], evaluation: Evaluation, metrics: Mapping[str, Any]
    ) -> bool:
        """Keep the files of an adapter if they are among the best; gives whether they are.

        An evaluation with too many ungraded samples, or no finite mean, never ranks. Raises DiskError.
        """
        if not evaluation.can_rank:
            return False
        new = Ranked(evaluation.step, evaluation.reward_mean)
        others = [entry for entry in self.ranking() if entry.step != new.step]
        if new not in best_first([*others, new])[: self._keep]:
            return False
        told = {k: v for k, v in metrics.items() if not k.startswith("timing/")}
        self._write(files, {"step": new.step, "valid_reward_mean": new.reward, "metrics": told})
        return True

    def save_pause(self, files: Mapping[str, Content], step: int) -> None:
        """Keep the files of an adapter because the run pauses at that step. Raises DiskError."""
        if step in self._entries():
            return
        self._write(
            files, {"step": step, "valid_reward_mean": None, "metrics": {}, "is_pause": True}
        )

    def prune(self, is_last: bool = False) -> None:
        """Drop what no longer ranks, and all that were made at pauses but the newest; at the end of a run
        that one too."""
        entries = self._entries()
        pauses = [step for step, entry in entries.items() if entry.get("is_pause") is True]
        kept = {entry.step for entry in self.ranking()} | set(() if is_last else pauses[-1:])
        for step in entries.keys() - kept:
            reach("retention.begun")
            disk.remove_folder(self._folder.checkpoint(step))

    def forget_after(self, step: int) -> None:
        """Drop checkpoints of steps that will be computed again."""
        for later in steps_in(self._folder.checkpoints):
            if later > step:
                disk.remove_folder(self._folder.checkpoint(later))

    def drop_damaged(self, expected: Sequence[Ranked]) -> list[str]:
        """Drop what is not as it was written, by its hashes; gives a sentence for each, and for each of the
        expected ones that is missing."""
        steps = sorted({*self._entries(), *(entry.step for entry in expected)})
        faults = {step: verify_folder(self._folder.checkpoint(step)) for step in steps}
        damaged = {step: found for step, found in faults.items() if found}
        for step in damaged:
            disk.remove_folder(self._folder.checkpoint(step))
        return [
            f"the checkpoint of step {step} is lost or damaged: {'; '.join(found)}"
            for step, found in damaged.items()
        ]

    def _entries(self) -> dict[int, dict[str, Any]]:
        """What the whole checkpoints say of themselves, by step, ascending."""
        entries: dict[int, dict[str, Any]] = {}
        for step in steps_in(self._folder.checkpoints):
            path = self._folder.checkpoint(step)
            entry = read_document(path / ENTRY)
            is_entry = entry.get("step") == step and _has_place(entry)
            if is_entry and not manifest_faults(path):
                entries[step] = entry
        return entries

    def _write(self, files: Mapping[str, Content], entry: Mapping[str, Any]) -> None:
        document = {
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(time.time()),
            **entry,
        }
        content = json_bytes(document, indent=1) + b"\n"
        write_folder(self._folder.checkpoint(entry["step"]), {**files, ENTRY: content})


def _has_place(entry: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint says of itself ranks it, or says that it was made at a pause."""
    reward = entry.get("valid_reward_mean")
    return entry.get("is_pause") is True or isinstance(reward, int | float)
