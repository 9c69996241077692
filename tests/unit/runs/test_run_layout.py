"""Which folder a job may write to."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rft.errors import RunError
from rft.runs.layout import RunFolder, choose_run_folder, new_run_folder, steps_in


def begun(folder: Path, status: str = "running", states: tuple[int, ...] = ()) -> Path:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.state.write_text(f'{{"status": "{status}"}}')
    for step in states:
        run.state_folder(step).mkdir(parents=True)
    return folder


def test_the_next_free_number_is_the_one_after_the_highest(tmp_path: Path) -> None:
    for name in ("a-1", "a-9", "a-10", "a-b-12", "b-40", "a-x"):
        (tmp_path / name).mkdir()
    assert new_run_folder("a", tmp_path) == tmp_path / "a-11"
    assert new_run_folder("a-b", tmp_path) == tmp_path / "a-b-13"
    assert new_run_folder("c", tmp_path / "deep" / "er") == tmp_path / "deep" / "er" / "c-1"


def test_processes_that_ask_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder("a", tmp_path), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize(
    ("status", "states", "action"),
    [
        ("running", (), "start"),
        ("running", (3,), "resume"),
        ("paused", (3, 4), "resume"),
        ("failed", (3,), "resume"),
        ("succeeded", (3,), "finished"),
        ("cancelled", (3,), "finished"),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_what_resume_finds(
    tmp_path: Path, status: str, states: tuple[int, ...], action: str, is_named: bool
) -> None:
    begun(tmp_path / "a-1", "paused", (1,))
    newest = begun(tmp_path / "a-2", status, states)
    choice = choose_run_folder("a", newest if is_named else None, True, tmp_path)
    assert (choice.folder, choice.action) == (newest, action)


def test_resume_without_any_run_starts_one(tmp_path: Path) -> None:
    choice = choose_run_folder("a", None, True, tmp_path)
    assert (choice.folder, choice.action) == (tmp_path / "a-1", "start")


def test_a_named_folder_that_is_missing_is_created(tmp_path: Path) -> None:
    for resume in (True, False):
        folder = tmp_path / "x" / f"here{resume}"
        choice = choose_run_folder("a", folder, resume, tmp_path)
        assert (choice.folder, choice.action) == (folder, "start")
        assert folder.is_dir()


def test_an_existing_folder_needs_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"exists already.*add --resume"):
        choose_run_folder("a", begun(tmp_path / "a-1"), False, tmp_path)
    with pytest.raises(RunError, match="exists already"):
        choose_run_folder("a", tmp_path, False, tmp_path)


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="holds files, but none of a run"):
        choose_run_folder("a", tmp_path, True, tmp_path)
    with pytest.raises(RunError, match="is a file"):
        choose_run_folder("a", tmp_path / "file", True, tmp_path)
    with pytest.raises(RunError, match=r"a part of the path is a file|a file stands where"):
        choose_run_folder("a", tmp_path / "file" / "x" / "y", False, tmp_path)


def test_steps_are_read_from_names_and_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step_10", "step_9", ".tmp-step_3-x", "step_x", "step_7.parquet"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == [9, 10]
    assert steps_in(tmp_path, ".parquet") == [7]
    assert steps_in(tmp_path / "missing") == []
