"""Resume states: all that a run needs to go on after a step as if it had never stopped."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rft.failpoints import reach
from rft.runs import disk
from rft.runs.documents import json_bytes, read_document
from rft.runs.folders import manifest_sha256, verify_folder, write_folder
from rft.runs.layout import RunFolder, steps_in
from rft.training.checkpoints import Ranked
from rft.training.host_tensors import HostTensors

NUM_KEPT = 2
"""The newest states that stay on disk."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, apart from its tensors."""

    step: int
    """The last finished step."""
    stream_cursor: int
    """Prompts drawn so far."""
    data_digest: str
    """SHA-256 of the rows as the model sees them."""
    baseline: float | None
    """`valid_reward_mean` at step 0."""
    last_reward: float | None
    """`valid_reward_mean` of the newest evaluation."""
    best_reward: float | None
    """The highest `valid_reward_mean` that could rank, after step 0."""
    evaluations_since_best: int
    """For `patience`."""
    watch: Mapping[str, float]
    """What the warnings remember."""
    token_budget: int | None = None
    """Packed tokens of a micro-batch where want of memory has halved them; None: as the job has it."""
    slots: int | None = None
    """Completions that the first rank samples side by side, likewise."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run was made with: what must be the same, and what should be, for the same bytes."""

    job: str
    """The resolved document, whose schedule and seed make rates, order and draws pure functions of the step."""
    total_steps: int
    machine: Mapping[str, Any]
    """Versions, processor, threads, processes, device."""
    base_digest: str | None = None
    """Of the base's weights; None in a state that was saved without."""
    adapter_digest: str | None = None
    """Of the adapter that the run continues from, likewise."""

    @property
    def job_sha256(self) -> str:
        return hashlib.sha256(self.job.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    progress: Progress
    origin: Origin
    best: Sequence[Ranked]
    """The checkpoints that were kept, the best first."""
    adapter: HostTensors
    optimizer: HostTensors
    positions: Mapping[str, int]
    """Lengths in bytes of the run's appended files."""


class StateStore:
    """`states/step_N/`: adapter.safetensors, optimizer.safetensors, progress.json; the two newest, of
    which `states/latest.json` names the one that was saved last."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def save(self, state: State) -> None:
        """Write a state, then drop all but the newest two. Raises DiskError."""
        step = state.progress.step
        manifest = write_folder(
            self._folder.state_folder(step),
            {
                "adapter.safetensors": state.adapter.file(),
                "optimizer.safetensors": state.optimizer.file(),
                "progress.json": json_bytes(_document(state), indent=1) + b"\n",
            },
        )
        pointer = {"step": step, "manifest_sha256": manifest}
        disk.replace(self._folder.newest_state, json_bytes(pointer) + b"\n")
        reach("save.pointed")
        self.prune()

    def prune(self) -> None:
        """Drop all but the newest two."""
        for old in steps_in(self._folder.states)[:-NUM_KEPT]:
            disk.remove_folder(self._folder.state_folder(old))

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest undamaged state, and what was wrong with newer ones."""
        steps = steps_in(self._folder.states)
        pointer = read_document(self._folder.newest_state)
        faults = self._faults_of_pointer(pointer, steps)
        for step in reversed(steps):
            expected = pointer.get("manifest_sha256") if step == pointer.get("step") else None
            state, damage = self._read(step, expected)
            if state is not None:
                return state, faults
            faults.append(f"the state of step {step} is damaged: {'; '.join(damage)}")
        return None, faults

    def _faults_of_pointer(self, pointer: Mapping[str, Any], steps: Sequence[int]) -> list[str]:
        """A state that was saved last is missed, even when nothing of it is left."""
        name, step = self._folder.newest_state.name, pointer.get("step")
        if not isinstance(step, int):
            return [f"{name} is missing or damaged"] if steps else []
        if step not in steps:
            return [f"the state of step {step} is missing"]
        if manifest_sha256(self._folder.state_folder(step)) != pointer.get("manifest_sha256"):
            return [f"{name} does not fit the state of step {step}"]
        return []

    def forget_after(self, step: int) -> None:
        """Drop states of later steps: they were damaged and will be written again."""
        for later in steps_in(self._folder.states):
            if later > step:
                disk.remove_folder(self._folder.state_folder(later))

    def _read(self, step: int, manifest: Any) -> tuple[State | None, list[str]]:
        """The state of a step, or what is wrong with it; `manifest`: what its hash was, if that is known."""
        path = self._folder.state_folder(step)
        try:
            if damage := verify_folder(path):
                return None, damage
            if manifest is not None and manifest_sha256(path) != manifest:
                return None, ["it is not the one that was saved last"]
            document = read_document(path / "progress.json")
            state = _state(document, path)
        except OSError as error:
            return None, [f"it cannot be read: {error.strerror or error}"]
        except (KeyError, TypeError, ValueError) as error:
            return None, [f"progress.json is not of this version of rft: {error}"]
        if state.progress.step != step:
            return None, [f"it is the state of step {state.progress.step}"]
        if document["origin"]["job_sha256"] != state.origin.job_sha256:
            return None, ["its job does not have the hash that stands beside it"]
        return state, []


def smaller_sizes(before: Progress, now: Progress) -> list[str]:
    """A sentence for each size that want of memory has halved in between."""
    sizes = (
        ("micro-batches now hold", "tokens", before.token_budget, now.token_budget),
        ("the sampler now has", "slots", before.slots, now.slots),
    )
    return [
        f"memory ran out: {what} {after} {unit}, and the work was done again"
        for what, unit, earlier, after in sizes
        if after is not None and (earlier is None or after < earlier)
    ]


def _document(state: State) -> dict[str, Any]:
    """What progress.json holds."""
    return {
        "progress": asdict(state.progress),
        "origin": {**asdict(state.origin), "job_sha256": state.origin.job_sha256},
        "best": [asdict(entry) for entry in state.best],
        "positions": dict(state.positions),
    }


def _state(document: Mapping[str, Any], path: Path) -> State:
    origin = {k: v for k, v in document["origin"].items() if k != "job_sha256"}
    return State(
        progress=Progress(**document["progress"]),
        origin=Origin(**origin),
        best=[Ranked(**entry) for entry in document["best"]],
        adapter=HostTensors(load_file(path / "adapter.safetensors")),
        optimizer=HostTensors(load_file(path / "optimizer.safetensors")),
        positions=document["positions"],
    )
