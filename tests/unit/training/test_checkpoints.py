"""The best three of a run, whatever the rewards, and whatever goes wrong on the way."""

import errno
import json
import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import make_evaluation
from safetensors import SafetensorError

from rft.errors import MachineError
from rft.policy import Policy
from rft.runs.folders import verify_folder
from rft.runs.layout import RunFolder, steps_in
from rft.training import checkpoints
from rft.training.checkpoints import CheckpointStore, Ranked, best_first


class NamedWeights(Policy):
    """A policy whose adapter is a word."""

    def __init__(self, word: str):
        self.word = word

    def save_adapter(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_text(self.word)


class FullDisk(Policy):
    """A policy whose adapter fits only in part."""

    def __init__(self, error: Exception):
        self.error = error

    def save_adapter(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_text("ha")
        raise self.error


def open_store(root: Path, keep: int = 3) -> CheckpointStore:
    (root / "checkpoints").mkdir(exist_ok=True)
    return CheckpointStore(RunFolder(root), keep)


def save(store: CheckpointStore, step: int, reward: float) -> bool:
    evaluation = make_evaluation([reward], step=step)
    return store.save(NamedWeights(f"weights of step {step}"), evaluation, {"a": step})


def contents(root: Path) -> dict[str, str]:
    """Checkpoint → what its adapter holds; every folder must be whole."""
    folders = sorted((root / "checkpoints").iterdir())
    for folder in folders:
        assert verify_folder(folder) == []
    return {f.name: (f / "adapter_model.safetensors").read_text() for f in folders}


REWARDS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.0, math.nan, math.inf])


@settings(max_examples=25, deadline=None, database=None)
@given(rewards=st.lists(REWARDS, max_size=8), keep=st.integers(1, 4))
def test_the_best_are_kept(rewards: list[float], keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seen: list[tuple[float, int]] = []
        for step, reward in enumerate(rewards, 1):
            seen += [(reward, step)] if math.isfinite(reward) else []
            oracle = sorted(seen, reverse=True)[:keep]
            store = open_store(root, keep)
            assert save(store, step, reward) is ((reward, step) in oracle)
            assert [(entry.reward, entry.step) for entry in store.ranking()] == oracle
            assert contents(root) == {f"step_{s}": f"weights of step {s}" for _, s in oracle}


def test_ties_go_to_the_later() -> None:
    entries = [Ranked(1, 0.5), Ranked(3, 0.5), Ranked(2, 0.7), Ranked(4, 0.1)]
    assert [entry.step for entry in best_first(entries)] == [2, 3, 1, 4]


def test_too_many_ungraded_samples_never_rank(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    evaluation = make_evaluation([1.0, None])
    assert store.save(NamedWeights("x"), evaluation, {}) is False
    assert contents(tmp_path) == {}


def test_what_stands_in_a_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    metrics = {"valid_reward_mean": 0.5, "timing/evaluation": 3.25, "loss/total": -0.25}
    store.save(NamedWeights("x"), make_evaluation([0.5], step=4), metrics)
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
    store.save(NamedWeights("second"), make_evaluation([again], step=2), {})
    assert contents(tmp_path) == {"step_2": "second"}
    assert store.ranking() == [Ranked(2, again)]


def test_a_crash_between_writing_and_removing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for step, reward in enumerate([0.1, 0.2, 0.3], 1):
        save(store, step, reward)

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 4, 0.4)
    assert list(contents(tmp_path)) == ["step_1", "step_2", "step_3", "step_4"]

    assert save(open_store(tmp_path), 5, 0.25)
    assert list(contents(tmp_path)) == ["step_3", "step_4", "step_5"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_loses_nothing_and_is_said_in_words(tmp_path: Path, error: Exception) -> None:
    store = open_store(tmp_path)
    for step, reward in enumerate([0.1, 0.2, 0.3], 1):
        save(store, step, reward)
    with pytest.raises(MachineError, match="cannot write: No space left on device") as failure:
        store.save(FullDisk(error), make_evaluation([0.9], step=4), {})
    assert "free some space" in str(failure.value)
    assert list(contents(tmp_path)) == ["step_1", "step_2", "step_3"]


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


FOREIGN = ("notes", "step_3_backup", "step_x", "my_step_2", "step_-1", "step_")


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path, keep=1)
    for name in FOREIGN:
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "mine.txt").write_text("keep me")
    (tmp_path / "checkpoints/step_1.txt").write_text("keep me too")
    for step in (1, 2, 3):
        save(store, step, step / 10)
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
