"""The best three of a run, whatever the rewards, and whatever goes wrong on the way."""

import json
import math
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made import make_evaluation

from rft.errors import DiskError
from rft.failpoints import VARIABLE, _visits
from rft.runs import disk
from rft.runs.folders import verify_folder
from rft.runs.layout import RunFolder, steps_in
from rft.training.checkpoints import CheckpointStore, Ranked, best_first
from rft.training.host_tensors import HostTensors
from rft.training.states import Origin, Progress, State, StateStore


def adapter(word: str) -> dict[str, bytes]:
    """The files of an adapter that is a word."""
    return {"adapter_model.safetensors": word.encode()}


def open_store(root: Path, keep: int = 3) -> CheckpointStore:
    (root / "checkpoints").mkdir(exist_ok=True)
    return CheckpointStore(RunFolder(root), keep)


def save(store: CheckpointStore, step: int, reward: float) -> bool:
    evaluation = make_evaluation([reward], step=step)
    return store.save(adapter(f"weights of step {step}"), evaluation, {"a": step})


def contents(root: Path) -> dict[str, str]:
    """Checkpoint → what its adapter holds; every folder must be whole."""
    folders = sorted((root / "checkpoints").iterdir())
    for folder in folders:
        assert verify_folder(folder) == []
    return {f.name: (f / "adapter_model.safetensors").read_text() for f in folders}


def make_state(step: int, store: CheckpointStore) -> State:
    return State(
        progress=Progress(step, 0, "digest", None, None, None, 0, {}),
        origin=Origin("model: tiny\n", 9, {}),
        best=store.ranking(),
        adapter=HostTensors({"a": torch.tensor([float(step)])}),
        optimizer=HostTensors({}),
        positions={},
    )


REWARDS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.0, math.nan, math.inf, -math.inf])


def take_steps(root: Path, rewards: list[float], keep: int) -> None:
    """Steps with an evaluation each, as a run takes them: checkpoint, state, and what is too much goes."""
    seen: list[tuple[float, int]] = []
    oracle: list[tuple[float, int]] = []
    for step, reward in enumerate(rewards, 1):
        seen += [(reward, step)] if math.isfinite(reward) else []
        before, oracle = oracle, sorted(seen, reverse=True)[:keep]
        store, states = open_store(root, keep), StateStore(RunFolder(root))
        is_kept = (reward, step) in oracle
        assert save(store, step, reward) is is_kept
        assert [(entry.reward, entry.step) for entry in store.ranking()] == oracle
        on_disk = {s for _, s in before} | ({step} if is_kept else set())
        assert contents(root) == {f"step_{s}": f"weights of step {s}" for s in on_disk}

        states.save(make_state(step, store))
        store.prune()
        assert [(entry.reward, entry.step) for entry in store.ranking()] == oracle
        assert contents(root) == {f"step_{s}": f"weights of step {s}" for _, s in oracle}
        state, faults = states.newest()
        assert state is not None and (state.progress.step, faults) == (step, [])
        assert [(entry.reward, entry.step) for entry in state.best] == oracle
        assert state.adapter["a"].tolist() == [step]
        assert store.drop_damaged(state.best) == []
    assert steps_in(root / "states") == list(range(1, len(rewards) + 1))[-2:]


TIES = [random.Random(seed).choices([0.25, 0.5, 0.75, math.nan], k=14) for seed in range(4)]
"""Random sequences in which every reward comes again and again."""


@settings(max_examples=25, deadline=None, database=None)
@given(rewards=st.lists(REWARDS, max_size=8), keep=st.integers(1, 4))
@example(rewards=TIES[0], keep=3)
@example(rewards=TIES[1], keep=3)
@example(rewards=TIES[2], keep=1)
@example(rewards=TIES[3], keep=2)
@example(rewards=[0.5] * 6, keep=3)
@example(rewards=[math.nan, -math.inf, math.inf, math.nan], keep=3)
def test_the_best_are_kept_and_the_newest_state_too(rewards: list[float], keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        take_steps(Path(folder), rewards, keep)


def test_ties_go_to_the_later() -> None:
    entries = [Ranked(1, 0.5), Ranked(3, 0.5), Ranked(2, 0.7), Ranked(4, 0.1)]
    assert [entry.step for entry in best_first(entries)] == [2, 3, 1, 4]


def test_too_many_ungraded_samples_never_rank(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    evaluation = make_evaluation([1.0, None])
    assert store.save(adapter("x"), evaluation, {}) is False
    assert contents(tmp_path) == {}


def test_what_stands_in_a_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    metrics = {"valid_reward_mean": 0.5, "timing/evaluation": 3.25, "loss/total": -0.25}
    store.save(adapter("x"), make_evaluation([0.5], step=4), metrics)
    entry = json.loads((tmp_path / "checkpoints/step_4/checkpoint.json").read_text())
    assert isinstance(entry.pop("created_at"), int)
    assert entry == {
        "object": "fine_tuning.job.checkpoint",
        "step": 4,
        "valid_reward_mean": 0.5,
        "metrics": {"valid_reward_mean": 0.5, "loss/total": -0.25},
    }


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize(("first", "again"), [(0.5, 0.6), (0.6, 0.5)])
def test_a_step_that_is_computed_again_replaces_its_checkpoint(
    tmp_path: Path, first: float, again: float, keep: int
) -> None:
    store = open_store(tmp_path, keep)
    save(store, 2, first)
    store.save(adapter("second"), make_evaluation([again], step=2), {})
    assert contents(tmp_path) == {"step_2": "second"}
    assert store.ranking() == [Ranked(2, again)]


def test_an_old_one_goes_only_once_a_state_is_saved(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step, reward in enumerate([0.1, 0.2, 0.3, 0.4, 0.15], 1):
        save(store, step, reward)
    assert list(contents(tmp_path)) == ["step_1", "step_2", "step_3", "step_4"]
    assert store.ranking() == [Ranked(4, 0.4), Ranked(3, 0.3), Ranked(2, 0.2)]
    store.forget_after(3)  # the state that was to follow step 4 never came
    assert store.ranking() == [Ranked(3, 0.3), Ranked(2, 0.2), Ranked(1, 0.1)]


def test_a_crash_between_writing_and_removing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for step, reward in enumerate([0.1, 0.2, 0.3], 1):
        save(store, step, reward)

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    save(store, 4, 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "remove_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            store.prune()
    assert list(contents(tmp_path)) == ["step_1", "step_2", "step_3", "step_4"]

    store = open_store(tmp_path)
    assert save(store, 5, 0.25)
    store.prune()
    assert list(contents(tmp_path)) == ["step_3", "step_4", "step_5"]


@pytest.mark.parametrize(
    "failpoint", ["disk.write", "disk.write#2", "disk.write#3", "disk.fsync#3", "disk.rename"]
)
def test_a_full_disk_loses_nothing_and_is_said_in_words(
    tmp_path: Path, failpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for step, reward in enumerate([0.1, 0.2, 0.3], 1):
        save(store, step, reward)
    _visits.cache_clear()
    monkeypatch.setenv(VARIABLE, f"{failpoint}=ENOSPC")
    with pytest.raises(DiskError, match="cannot write: No space left on device") as failure:
        save(store, 4, 0.9)
    assert "free some space" in str(failure.value)
    assert list(contents(tmp_path)) == ["step_1", "step_2", "step_3"]
    monkeypatch.delenv(VARIABLE)
    assert save(store, 4, 0.9)


def test_a_run_that_pauses_keeps_the_adapter_of_that_step(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    save(store, 2, 0.5)
    store.save_pause(adapter("paused"), 3)
    entry = json.loads((tmp_path / "checkpoints/step_3/checkpoint.json").read_text())
    assert isinstance(entry.pop("created_at"), int)
    assert entry == {
        "object": "fine_tuning.job.checkpoint",
        "step": 3,
        "valid_reward_mean": None,
        "metrics": {},
        "is_pause": True,
    }
    assert contents(tmp_path) == {"step_2": "weights of step 2", "step_3": "paused"}
    assert store.ranking() == [Ranked(2, 0.5)]


def test_a_pause_at_a_checkpoint_needs_no_other(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    save(store, 2, 0.5)
    for _ in range(2):
        store.save_pause(adapter("the same weights"), 2)
    assert contents(tmp_path) == {"step_2": "weights of step 2"}
    assert store.ranking() == [Ranked(2, 0.5)]
    (tmp_path / "checkpoints/step_2/manifest.json").unlink()
    store.save_pause(adapter("whole again"), 2)
    assert contents(tmp_path) == {"step_2": "whole again"}


def test_the_ranking_and_the_best_ignore_pauses(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=2)
    for step, reward in ((1, 0.1), (3, 0.3), (5, 0.2)):
        store.save_pause(adapter("paused"), step - 1)
        assert save(store, step, reward)
        assert all(entry.step % 2 for entry in store.ranking())
    assert store.ranking() == [Ranked(3, 0.3), Ranked(5, 0.2)]
    assert not save(store, 7, 0.1)


def test_the_newest_pause_stays_until_the_run_ends(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1)
    save(store, 1, 0.1)
    for step in (2, 10, 3):
        store.save_pause(adapter(f"paused at {step}"), step)
    save(store, 4, 0.4)
    store.prune()
    assert contents(tmp_path) == {"step_10": "paused at 10", "step_4": "weights of step 4"}
    store.prune()
    assert list(contents(tmp_path)) == ["step_10", "step_4"]
    store.prune(is_last=True)
    assert list(contents(tmp_path)) == ["step_4"]


def test_an_evaluation_at_the_step_of_a_pause_replaces_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.save_pause(adapter("paused"), 2)
    assert save(store, 2, 0.5)
    assert contents(tmp_path) == {"step_2": "weights of step 2"}
    assert store.ranking() == [Ranked(2, 0.5)]


def test_lost_checkpoints_are_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (1, 2, 3):
        save(store, step, step / 10)
    expected = store.ranking()
    assert store.drop_damaged(expected) == []
    (tmp_path / "checkpoints/step_2/adapter_model.safetensors").write_text("weights of step 3")
    disk.remove_folder(tmp_path / "checkpoints/step_3")
    assert store.drop_damaged(expected) == [
        "the checkpoint of step 2 is lost or damaged: "
        "adapter_model.safetensors was changed since it was written",
        "the checkpoint of step 3 is lost or damaged: manifest.json is missing",
    ]
    assert list(contents(tmp_path)) == ["step_1"]


def test_a_reward_that_was_changed_does_not_win(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (1, 2):
        save(store, step, step / 10)
    entry = tmp_path / "checkpoints/step_1/checkpoint.json"
    entry.write_text(entry.read_text().replace("0.1", "9.1"))
    (fault,) = store.drop_damaged([])
    assert "step 1 is lost or damaged: checkpoint.json was changed" in fault
    assert store.ranking() == [Ranked(2, 0.2)]


def test_forget_after(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (2, 10, 7):
        save(store, step, 0.5)
    store.forget_after(7)
    assert [entry.step for entry in store.ranking()] == [7, 2]
    store.forget_after(100)
    assert list(contents(tmp_path)) == ["step_2", "step_7"]
    store.forget_after(0)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("key", [b"valid_reward_mean", b"is_pause"])
def test_a_flipped_bit_in_an_entry_does_not_stop_a_run(tmp_path: Path, key: bytes) -> None:
    store = open_store(tmp_path)
    save(store, 1, 0.5)
    save(store, 2, 0.25)
    store.save_pause(adapter("paused"), 3)
    path = tmp_path / "checkpoints" / ("step_3" if key == b"is_pause" else "step_2")
    content = (path / "checkpoint.json").read_bytes()
    (path / "checkpoint.json").write_bytes(content.replace(key, b"w" + key[1:]))
    assert Ranked(1, 0.5) in store.ranking()
    store.prune()
    assert save(store, 4, 0.75)


FOREIGN = ("notes", "step_3_backup", "step_x", "my_step_2", "step_-1", "step_")


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1)
    for name in FOREIGN:
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "mine.txt").write_text("keep me")
    (tmp_path / "checkpoints/step_1.txt").write_text("keep me too")
    for step in (1, 2, 3):
        save(store, step, step / 10)
        store.prune()
    assert store.ranking() == [Ranked(3, 0.3)]
    store.forget_after(2)
    assert store.ranking() == []
    for name in FOREIGN:
        assert (tmp_path / "checkpoints" / name / "mine.txt").read_text() == "keep me"
    assert (tmp_path / "checkpoints/step_1.txt").read_text() == "keep me too"


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    """Such as a copy that broke off: it neither ranks nor stands in the way."""
    store = open_store(tmp_path)
    torn = tmp_path / "checkpoints/step_9"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_text("half")
    assert store.ranking() == []
    assert save(store, 1, 0.5)
    assert store.ranking() == [Ranked(1, 0.5)]


def test_no_run_folder_yet(tmp_path: Path) -> None:
    assert CheckpointStore(RunFolder(tmp_path / "none"), 3).ranking() == []
    assert steps_in(tmp_path / "none") == []
