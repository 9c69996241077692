"""Resume states: all that a run needs to go on after a step as if it had never stopped."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from rft.runs.folders import remove_folder, verify_folder, write_folder
from rft.runs.layout import RunFolder, steps_in

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
class State:
    progress: Progress
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    positions: Mapping[str, int]
    """Lengths in bytes of the run's appended files."""


class StateStore:
    """`states/step_N/`: adapter.safetensors, optimizer.safetensors, progress.json; the two newest."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def save(self, state: State) -> None:
        """Write a state, then drop all but the newest two."""
        document = {"progress": asdict(state.progress), "positions": dict(state.positions)}
        write_folder(
            self._folder.state_folder(state.progress.step),
            {
                "adapter.safetensors": _bytes(state.adapter),
                "optimizer.safetensors": _bytes(state.optimizer),
                "progress.json": json.dumps(document, indent=1).encode() + b"\n",
            },
        )
        for step in steps_in(self._folder.states)[:-NUM_KEPT]:
            remove_folder(self._folder.state_folder(step))

    def newest(self) -> tuple[State | None, list[str]]:
        """The newest undamaged state, and what was wrong with newer ones."""
        faults: list[str] = []
        for step in reversed(steps_in(self._folder.states)):
            path = self._folder.state_folder(step)
            damage = verify_folder(path)
            if not damage:
                return _read(path), faults
            faults.append(f"state of step {step} is damaged: {'; '.join(damage)}")
        return None, faults

    def forget_after(self, step: int) -> None:
        """Drop states of later steps: they were damaged and will be written again."""
        for later in steps_in(self._folder.states):
            if later > step:
                remove_folder(self._folder.state_folder(later))


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


def _read(path: Path) -> State:
    document: dict[str, Any] = json.loads((path / "progress.json").read_text())
    return State(
        progress=Progress(**document["progress"]),
        adapter=load_file(path / "adapter.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        positions=document["positions"],
    )


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    on_cpu = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    return save(on_cpu)
