"""A run seen from outside."""

import json
from pathlib import Path

import pytest

from rft.errors import RunError
from rft.runs.documents import json_bytes
from rft.runs.folders import write_folder
from rft.runs.reader import adapter_folder, list_runs, open_run, split_reference
from rft.runs.writer import RunWriter
from tests.statuses import bring_to


def save_checkpoint(folder: Path, step: int, reward: float | None) -> None:
    document = {"step": step, "valid_reward_mean": reward, "metrics": {"step": step}}
    write_folder(
        folder / "checkpoints" / f"step_{step}",
        {"adapter_config.json": b"{}", "checkpoint.json": json_bytes(document)},
    )


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    for number in (1, 2, 10):
        with RunWriter(tmp_path / f"a-{number}", []) as run:
            bring_to(run, "running", step=4, total_steps=4)
    save_checkpoint(tmp_path / "a-2", 2, 0.5)
    save_checkpoint(tmp_path / "a-2", 3, 0.75)
    save_checkpoint(tmp_path / "a-2", 4, 0.75)
    save_checkpoint(tmp_path / "a-2", 9, None)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("a-1", ("a-1", None)),
        ("a-1@7", ("a-1", 7)),
        ("runs/a-1@step_7", ("runs/a-1", 7)),
        ("a-1@best", ("a-1", None)),
        ("user@host", ("user@host", None)),
        ("@7", ("@7", None)),
        ("a@b@7", ("a@b", 7)),
        ("a-1@-7", ("a-1@-7", None)),
    ],
)
def test_references(reference: str, parts: tuple[str, int | None]) -> None:
    assert split_reference(reference) == parts


def test_runs_open_by_name_and_by_path(parent: Path) -> None:
    assert open_run("a-2", parent).folder.root == parent / "a-2"
    assert open_run(f"{parent}/a-2@3", Path("elsewhere")).step == 3
    assert [run.name for run in list_runs(parent)] == ["a-1", "a-2", "a-10"]


def test_a_folder_that_cannot_be_read_hides_no_other(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (parent / "lost+found").mkdir(mode=0)
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "lost+found":  # what everybody but root is told
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [run.name for run in list_runs(parent)] == ["a-1", "a-2", "a-10"]


def test_names_with_digits_that_are_no_numbers_are_sorted(parent: Path) -> None:
    with RunWriter(parent / "a-2²", []) as run:
        bring_to(run, "running")
    assert [run.name for run in list_runs(parent)] == ["a-1", "a-2", "a-2²", "a-10"]


def test_a_run_that_is_missing_is_answered_with_the_nearest(parent: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run 'a-3'.*did you mean .*a-"):
        open_run("a-3", parent)
    with pytest.raises(RunError, match="give the path of a run folder"):
        open_run("a-3", parent / "none")


def test_the_best_checkpoint_is_the_later_of_equals_unless_the_state_says(parent: Path) -> None:
    run = open_run("a-2", parent)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 3, 4, 9]
    best = run.best_checkpoint()
    assert best is not None and (best.step, best.valid_reward_mean) == (4, 0.75)
    with RunWriter(parent / "a-2", []) as writer:
        writer.status("succeeded", best={"step": 3, "valid_reward_mean": 0.75})
    assert str(run.status()) == "succeeded"
    assert adapter_folder("a-2", parent).name == "step_3"
    assert adapter_folder("a-2@2", parent) == parent / "a-2" / "checkpoints" / "step_2"


def test_the_checkpoint_of_a_pause_is_the_best_only_where_none_has_a_reward(tmp_path: Path) -> None:
    folder = tmp_path / "a-1"
    RunWriter(folder, []).close()
    document = {"step": 7, "valid_reward_mean": None, "is_pause": True}
    files = {"adapter_config.json": b"{}", "checkpoint.json": json_bytes(document)}
    write_folder(folder / "checkpoints/step_7", files)
    assert adapter_folder("a-1", tmp_path).name == "step_7"
    save_checkpoint(folder, 2, 0.25)
    run = open_run("a-1", tmp_path)
    assert [(c.step, c.is_pause) for c in run.checkpoints()] == [(2, False), (7, True)]
    assert adapter_folder("a-1", tmp_path).name == "step_2"
    assert adapter_folder("a-1@7", tmp_path).name == "step_7"


def test_a_checkpoint_that_says_it_is_another_s_does_not_exist(tmp_path: Path) -> None:
    RunWriter(tmp_path / "a-1", []).close()
    for name, says in (("step_2", 2), ("step_3", 2), ("step_4", None)):
        content = {"checkpoint.json": json_bytes({"step": says, "valid_reward_mean": 0.5})}
        write_folder(tmp_path / "a-1/checkpoints" / name, content)
    assert [c.step for c in open_run("a-1", tmp_path).checkpoints()] == [2]


def test_checkpoints_without_a_whole_manifest_do_not_exist(parent: Path) -> None:
    (parent / "a-2/checkpoints/step_4/checkpoint.json").unlink()
    (parent / "a-2/checkpoints/step_3/manifest.json").write_text("{")
    assert [checkpoint.step for checkpoint in open_run("a-2", parent).checkpoints()] == [2, 9]
    with pytest.raises(RunError, match=r"keeps no checkpoint of step 4.*steps 2, 9"):
        adapter_folder("a-2@4", parent)


def test_a_damaged_adapter_is_refused(parent: Path) -> None:
    (parent / "a-2/checkpoints/step_2/adapter_config.json").write_bytes(b"[]")
    with pytest.raises(RunError, match=r"adapter_config\.json was changed"):
        adapter_folder("a-2@2", parent)
    with pytest.raises(RunError, match="no checkpoint yet"):
        adapter_folder("a-1", parent)


def test_a_run_whose_process_is_gone_is_shown_as_paused(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a-1", []) as writer:
        bring_to(writer, "running", step=2)
        assert str(open_run("a-1", tmp_path).status()) == "running"
    status = open_run("a-1", tmp_path).status()
    assert (status.status, str(status)) == ("paused", "paused (its process ended)")
    state = json.loads((tmp_path / "a-1/state.json").read_text())
    (tmp_path / "a-1/state.json").write_text(json.dumps(state | {"host": "far away"}))
    assert str(open_run("a-1", tmp_path).status()) == "running"


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a-1", []) as writer:
        writer.metrics({"step": 0})
    with (tmp_path / "a-1/metrics.jsonl").open("ab") as stream:
        stream.write(b'not json\n[1]\n\xff\n{"step": 1}\n{"step": 2}')
    assert open_run("a-1", tmp_path).metrics() == [{"step": 0}, {"step": 1}]


def test_a_damaged_evaluation_is_a_run_error(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a-1", []) as writer:
        writer.evaluation(0, [])
    run = open_run("a-1", tmp_path)
    run.folder.evaluation_file(0).write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="cannot be read"):
        run.evaluation(0)
    with pytest.raises(RunError, match=r"keeps no evaluation at step 1.*steps 0"):
        run.evaluation(1)
