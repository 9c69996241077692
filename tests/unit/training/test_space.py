"""What a run takes on disk, by hand on small numbers, and the refusal of a disk that is too small."""

from pathlib import Path

import pytest
from made import make_job, make_prompt

from rft.errors import DiskError
from rft.training import space
from rft.training.space import Space, refuse_full_disk, space_of, used_bytes

PARAMETERS = "method.reinforcement.hyperparameters"
JOB = make_job(
    f"{PARAMETERS}.eval_interval=1",
    f"{PARAMETERS}.eval_samples=2",
    "engine.checkpoints.keep=3",
)
"""Batches of 2 prompts with 2 completions each of at most 8 tokens; one epoch."""

ROW = 2 * len("<user>prompt 0") + len("{}") + 2 * 8 * 8 + 200
SAMPLES = 2 * 2 * ROW
EVALUATION = 3 * 2 * ROW
ADAPTER = 4 * 10
STATE = 3 * ADAPTER


def test_a_step_and_a_run_by_hand() -> None:
    train, valid = [make_prompt(i) for i in range(4)], [make_prompt(i) for i in range(3)]
    assert (ROW, SAMPLES, EVALUATION) == (358, 1432, 2148)
    # 2 steps, after each an evaluation, one at the start, and one that is on its way
    run = 3 * STATE + 6 * ADAPTER + 2 * SAMPLES + 4 * EVALUATION + 2 * 16_000
    assert space_of(10, JOB, train, valid) == Space(
        step=STATE + ADAPTER + SAMPLES + EVALUATION + 16_000, run=run
    )
    assert (STATE + ADAPTER + SAMPLES + EVALUATION + 16_000, run) == (19_740, 44_056)


def test_what_is_dropped_on_the_way_is_not_counted() -> None:
    train, valid = [make_prompt(0)] * 1000, [make_prompt(i) for i in range(3)]
    run = 3 * STATE + 6 * ADAPTER + 201 * SAMPLES + 101 * EVALUATION + 500 * 16_000
    assert space_of(10, JOB, train, valid).run == run


def test_the_longest_row_counts_in_bytes_with_its_item() -> None:
    short, long = make_prompt(0), make_prompt(0, (3, 4), answer="größer")
    item = len('{"answer": "gr\\u00f6\\u00dfer"}')
    found = space_of(10, JOB, [short, long, short, short], [short])
    expected = STATE + ADAPTER + 4 * (ROW - 2 + item) + 2 * ROW + 16_000
    assert found.step == expected


@pytest.mark.parametrize(("free", "is_refused"), [(1_100_000, False), (1_099_999, True)])
def test_a_disk_with_too_little_room_is_refused(
    tmp_path: Path, free: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda folder: free)
    if not is_refused:
        refuse_full_disk(tmp_path, 1_000_000)
        return
    with pytest.raises(DiskError) as refusal:
        refuse_full_disk(tmp_path, 1_000_000)
    (problem,) = refusal.value.problems
    assert problem.what == (
        "cannot write: No space left on device: about 1.1 MB are needed, 1.1 MB are free"
    )
    assert problem.where == str(tmp_path)
    assert problem.remedy == "free some space; what was saved before is untouched"


def test_a_real_disk(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path, 1)
    free = space.free_bytes(tmp_path)
    with pytest.raises(DiskError, match=r"about [\d,]+\.\d MB are needed, [\d,]+\.\d MB are free"):
        refuse_full_disk(tmp_path, 2 * free)


def test_used_bytes_are_those_of_whole_blocks_below(tmp_path: Path) -> None:
    assert used_bytes(tmp_path) == 0
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"x" * 10_000)
    used = used_bytes(tmp_path)
    assert used == (tmp_path / "a/b/c").stat().st_blocks * 512 and used >= 10_000
    (tmp_path / "d").write_bytes(b"x" * 10_000)
    assert used_bytes(tmp_path) == 2 * used
