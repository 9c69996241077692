"""Whatever happens to the newest state, it is seen, and the one before it is taken."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rft.errors import DiskError
from rft.failpoints import VARIABLE, _visits
from rft.runs.layout import RunFolder, steps_in
from rft.training.checkpoints import CheckpointStore, Ranked
from rft.training.host_tensors import HostTensors
from rft.training.states import Origin, Progress, State, StateStore

ORIGIN = Origin("model: tiny\n", 9, {"rft": "0.1.0"})


def make_state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return State(
        progress=Progress(step, 8 * step, "digest", 0.25, 0.5, 0.5, 0, {"gap": 0}),
        origin=ORIGIN,
        best=[Ranked(step, 0.5)],
        adapter=HostTensors({"a": torch.randn(3, 5, generator=generator)}),
        optimizer=HostTensors({"a|exp_avg": torch.randn(3, 5, generator=generator)}),
        positions={"events": 100 * step, "metrics": 10 * step, "results": 5},
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    for step in (6, 7):
        StateStore(RunFolder(root)).save(make_state(step))
    return root


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(root: Path, dice: random.Random) -> None:
    file = dice.choice(files_of(root / "states/step_7"))
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def truncate(root: Path, dice: random.Random) -> None:
    file = dice.choice(files_of(root / "states/step_7"))
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])


def lose(root: Path, dice: random.Random) -> None:
    dice.choice(files_of(root / "states/step_7")).unlink()


def lose_all(root: Path, dice: random.Random) -> None:
    shutil.rmtree(root / "states/step_7")


def empty(root: Path, dice: random.Random) -> None:
    name = dice.choice(["manifest.json", "progress.json", "adapter.safetensors"])
    (root / "states/step_7" / name).write_bytes(b"")


def swap_files(root: Path, dice: random.Random) -> None:
    one, other = dice.sample(files_of(root / "states/step_7"), 2)
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)


def swap_with_the_one_before(root: Path, dice: random.Random) -> None:
    name = dice.choice([path.name for path in files_of(root / "states/step_7")])
    (root / "states/step_7" / name).write_bytes((root / "states/step_6" / name).read_bytes())


def take_the_one_before_for_it(root: Path, dice: random.Random) -> None:
    shutil.rmtree(root / "states/step_7")
    shutil.copytree(root / "states/step_6", root / "states/step_7")


def append(root: Path, dice: random.Random) -> None:
    with dice.choice(files_of(root / "states/step_7")).open("ab") as stream:
        stream.write(b" ")


Damage = Callable[[Path, random.Random], None]
DAMAGES: list[Damage] = [
    flip, flip, flip, truncate, lose, lose_all, empty, swap_files, swap_with_the_one_before,
    take_the_one_before_for_it, append,
]  # fmt: skip


def test_two_hundred_corruptions_are_all_seen(sound: Path, tmp_path: Path) -> None:
    dice = random.Random(5)
    for number in range(200):
        root = tmp_path / str(number)
        shutil.copytree(sound, root)
        damage = dice.choice(DAMAGES)
        damage(root, dice)
        state, faults = StateStore(RunFolder(root)).newest()
        assert state is not None, damage.__name__
        assert state.progress.step == 6, damage.__name__
        assert any("of step 7" in fault for fault in faults), (damage.__name__, faults)
        assert torch.equal(state.adapter["a"], make_state(6).adapter["a"])
        shutil.rmtree(root)


def test_a_sound_state_is_taken_without_a_word(sound: Path) -> None:
    state, faults = StateStore(RunFolder(sound)).newest()
    assert state is not None and (state.progress.step, faults) == (7, [])


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"step": 7}', b'{"step": 6}', b"\xff"])
def test_a_damaged_pointer_is_told_and_never_leads_astray(
    sound: Path, tmp_path: Path, content: bytes | None
) -> None:
    root = tmp_path / "run"
    shutil.copytree(sound, root)
    pointer = root / "states/latest.json"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    state, (fault,) = StateStore(RunFolder(root)).newest()
    assert state is not None and state.progress.step == 7
    assert "latest.json" in fault


OPERATIONS = [
    f"disk.{operation}#{number}={code}"
    for operation, count in (("write", 9), ("fsync", 8), ("rename", 3))
    for number in range(1, count + 1)
    for code in ("ENOSPC", "EIO", "EDQUOT", "EACCES")
]
"""Every write, fsync and rename of saving a state, refused in each of the ways in which disks do."""


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def arm(failpoint: str) -> None:
        _visits.cache_clear()
        monkeypatch.setenv(VARIABLE, failpoint)

    return arm


@pytest.mark.parametrize("failpoint", OPERATIONS)
def test_a_write_that_fails_leaves_the_old_states_whole(
    sound: Path, tmp_path: Path, fail: Callable[[str], None], failpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = tmp_path / "run"
    shutil.copytree(sound, root)
    store = StateStore(RunFolder(root))
    fail(failpoint)
    with pytest.raises(DiskError, match="cannot write: ") as refusal:
        store.save(make_state(8))
    assert refusal.value.problems[0].remedy
    monkeypatch.delenv(VARIABLE)
    state, faults = store.newest()
    assert state is not None and faults == []
    assert state.progress.step in (7, 8)
    assert 7 in steps_in(root / "states")
    store.save(make_state(9))
    again, faults = store.newest()
    assert again is not None and (again.progress.step, faults) == (9, [])


def test_all_operations_of_a_save_were_refused(
    sound: Path, tmp_path: Path, fail: Callable[[str], None]
) -> None:
    """One more of each kind is never reached: the list above misses none."""
    for operation, count in (("write", 9), ("fsync", 8), ("rename", 3)):
        root = tmp_path / operation
        shutil.copytree(sound, root)
        fail(f"disk.{operation}#{count + 1}=EIO")
        StateStore(RunFolder(root)).save(make_state(8))


@pytest.mark.parametrize("number", range(1, 4))
@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_checkpoint_that_cannot_be_written_harms_none(
    tmp_path: Path, fail: Callable[[str], None], operation: str, number: int
) -> None:
    store = CheckpointStore(RunFolder(tmp_path), keep=1)
    store.save_pause({"adapter_model.safetensors": b"old"}, 3)
    fail(f"disk.{operation}#{min(number, 1 if operation == 'rename' else 3)}=ENOSPC")
    with pytest.raises(DiskError):
        store.save_pause({"adapter_model.safetensors": b"new"}, 5)
    assert steps_in(tmp_path / "checkpoints") == [3]
    assert list((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints/step_3"]
