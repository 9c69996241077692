"""Resume states: written whole, the two newest kept, damaged ones passed over."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rft.runs.layout import RunFolder, steps_in
from rft.training.states import Progress, State, StateStore, smaller_sizes

PROGRESS = Progress(
    step=3,
    stream_cursor=24,
    data_digest="d",
    baseline=0.25,
    last_reward=None,
    best_reward=0.1 + 0.2,
    evaluations_since_best=1,
    watch={"gap": 0, "zero signal": 2},
    token_budget=500,
    slots=16,
)
TENSORS = {
    "a.weight": torch.tensor([[1.0, -0.0], [float("inf"), 1e-40]]),
    "step": torch.tensor(3.0),
}


def make_state(step: int = 3) -> State:
    return State(replace(PROGRESS, step=step), TENSORS, {"m": torch.ones(2, 3)}, {"events": 71})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    store = StateStore(RunFolder(tmp_path))
    store.save(make_state())
    state, faults = store.newest()
    assert state is not None and faults == []
    assert (state.progress, state.positions) == (PROGRESS, {"events": 71})
    assert {name: t.tolist() for name, t in state.adapter.items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }
    assert torch.equal(state.optimizer["m"], torch.ones(2, 3))


def test_parts_of_larger_tensors_can_be_saved(tmp_path: Path) -> None:
    """A transposed slice is neither contiguous nor alone in its memory."""
    whole = torch.arange(12.0).view(3, 4)
    state = replace(make_state(), adapter={"a": whole[:, 1:3].T, "b": whole})
    store = StateStore(RunFolder(tmp_path))
    store.save(state)
    found, _ = store.newest()
    assert found is not None
    assert found.adapter["a"].tolist() == [[1, 5, 9], [2, 6, 10]]


def test_the_two_newest_stay(tmp_path: Path) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    for step in (1, 2, 9, 10):
        store.save(make_state(step))
        assert steps_in(folder.states)[-1] == step
    assert steps_in(folder.states) == [9, 10]


@pytest.mark.parametrize("name", ["adapter.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, name: str) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    store.save(make_state(1))
    store.save(make_state(2))
    file = folder.state_folder(2) / name
    file.write_bytes(file.read_bytes()[:-3])
    state, (fault,) = store.newest()
    assert state is not None and state.progress.step == 1
    assert fault.startswith("state of step 2 is damaged: ") and name in fault

    store.forget_after(1)
    assert steps_in(folder.states) == [1]


def test_no_state(tmp_path: Path) -> None:
    store = StateStore(RunFolder(tmp_path))
    assert store.newest() == (None, [])
    store.forget_after(0)


def test_all_states_damaged(tmp_path: Path) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    for step in (1, 2):
        store.save(make_state(step))
        (folder.state_folder(step) / "manifest.json").unlink()
    state, faults = store.newest()
    assert state is None
    assert [fault.split(" is ")[0] for fault in faults] == ["state of step 2", "state of step 1"]


def test_a_state_of_before_sizes_were_kept_still_loads(tmp_path: Path) -> None:
    document = asdict(PROGRESS)
    del document["token_budget"], document["slots"]
    assert Progress(**document) == replace(PROGRESS, token_budget=None, slots=None)


@pytest.mark.parametrize(
    ("budgets", "slots", "said"),
    [
        ((500, 500), (16, 16), []),
        ((500, 125), (16, 16), ["micro-batches now hold 125 tokens"]),
        ((None, 125), (None, None), ["micro-batches now hold 125 tokens"]),
        ((500, 500), (16, 4), ["the sampler now has 4 slots"]),
        (
            (500, 250),
            (16, 8),
            [
                "micro-batches now hold 250 tokens",
                "the sampler now has 8 slots",
            ],
        ),
    ],
)
def test_sizes_that_memory_made_smaller_are_told(
    budgets: tuple[int | None, int], slots: tuple[int | None, int | None], said: list[str]
) -> None:
    before, now = (replace(PROGRESS, token_budget=budgets[i], slots=slots[i]) for i in range(2))
    told = [f"memory ran out: {what}, and the work was done again" for what in said]
    assert smaller_sizes(before, now) == told
