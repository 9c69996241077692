"""Resume states: written whole, the two newest kept, damaged ones passed over."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rft.runs.layout import RunFolder, steps_in
from rft.training.checkpoints import Ranked
from rft.training.host_tensors import HostTensors
from rft.training.states import Origin, Progress, State, StateStore, smaller_sizes

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


ORIGIN = Origin("model: tiny\nsuffix: größe\n", 9, {"rft": "0.1.0", "libraries": {"torch": "2"}})
BEST = [Ranked(2, 0.1 + 0.2), Ranked(1, -1.0)]


def make_state(step: int = 3) -> State:
    return State(
        progress=replace(PROGRESS, step=step),
        origin=ORIGIN,
        best=BEST,
        adapter=HostTensors(TENSORS),
        optimizer=HostTensors({"m": torch.ones(2, 3)}),
        positions={"events": 71},
    )


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    store = StateStore(RunFolder(tmp_path))
    store.save(make_state())
    state, faults = store.newest()
    assert state is not None and faults == []
    assert (state.progress, state.positions) == (PROGRESS, {"events": 71})
    assert (state.origin, state.best) == (ORIGIN, BEST)
    assert state.origin.job_sha256 == hashlib.sha256(ORIGIN.job.encode()).hexdigest()
    assert {name: t.tolist() for name, t in state.adapter.items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }
    assert torch.equal(state.optimizer["m"], torch.ones(2, 3))


def test_parts_of_larger_tensors_can_be_saved(tmp_path: Path) -> None:
    """A transposed slice is neither contiguous nor alone in its memory."""
    whole = torch.arange(12.0).view(3, 4)
    state = replace(make_state(), adapter=HostTensors({"a": whole[:, 1:3].T, "b": whole}))
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
        newest, faults = store.newest()
        assert newest is not None and (newest.progress.step, faults) == (step, [])
    assert steps_in(folder.states) == [9, 10]
    assert sorted(path.name for path in folder.states.iterdir()) == [
        "latest.json", "step_10", "step_9",
    ]  # fmt: skip


def test_the_state_of_step_0_is_one_like_the_others(tmp_path: Path) -> None:
    store = StateStore(RunFolder(tmp_path))
    store.save(make_state(0))
    state, faults = store.newest()
    assert state is not None and (state.progress.step, faults) == (0, [])


def test_the_pointer_names_the_state_that_was_saved_last(tmp_path: Path) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    for step in (5, 6):
        store.save(make_state(step))
    manifest = (folder.state_folder(6) / "manifest.json").read_bytes()
    assert json.loads(folder.newest_state.read_text()) == {
        "step": 6,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }


def test_a_state_that_was_saved_last_is_missed_when_nothing_is_left_of_it(tmp_path: Path) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    store.save(make_state(5))
    pointer = folder.newest_state.read_bytes()
    store.forget_after(0)
    folder.newest_state.write_bytes(pointer)
    assert store.newest() == (None, ["the state of step 5 is missing"])


def test_a_state_of_another_job_than_it_says_is_passed_over(tmp_path: Path) -> None:
    """Only an error of a program could make it so: all hashes of files are right."""

    class OtherHash(Origin):
        @property
        def job_sha256(self) -> str:
            return "0" * 64

    store = StateStore(RunFolder(tmp_path))
    store.save(make_state(1))
    other = OtherHash(ORIGIN.job, ORIGIN.total_steps, ORIGIN.machine)
    store.save(replace(make_state(2), origin=other))
    state, (fault,) = store.newest()
    assert state is not None and state.progress.step == 1
    assert fault.endswith("its job does not have the hash that stands beside it")


def test_host_tensors_are_copies_that_nothing_writes_to() -> None:
    whole = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    copies = HostTensors({"a": whole[:, 1:3].T, "b": whole})
    assert copies["a"].is_contiguous() and not copies["b"].requires_grad
    with torch.no_grad():
        whole.zero_()
    assert copies["a"].tolist() == [[1, 5, 9], [2, 6, 10]]
    assert copies["b"].flatten().tolist() == list(range(12))


@pytest.mark.parametrize("name", ["adapter.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, name: str) -> None:
    store, folder = StateStore(RunFolder(tmp_path)), RunFolder(tmp_path)
    store.save(make_state(1))
    store.save(make_state(2))
    file = folder.state_folder(2) / name
    file.write_bytes(file.read_bytes()[:-3])
    state, (*others, fault) = store.newest()
    assert state is not None and state.progress.step == 1
    assert fault.startswith("the state of step 2 is damaged: ") and name in fault
    is_manifest = name == "manifest.json"
    assert others == ["latest.json does not fit the state of step 2"] * is_manifest

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
    assert faults == [
        "latest.json does not fit the state of step 2",
        "the state of step 2 is damaged: manifest.json is missing",
        "the state of step 1 is damaged: manifest.json is missing",
    ]


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
