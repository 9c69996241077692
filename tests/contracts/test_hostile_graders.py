"""Hostile and broken graders: each gets the right flag and reward in time, and harms no later sample.

A sample's own fault earns 0; a timeout, a memory limit or a source that fails before any sample leaves it
without a reward; both under python_grader_runtime_error. A sandbox that fails is
python_grader_server_error, without a reward.
"""

import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from rft.graders import Grader, GradingSettings, Python, open_grader
from rft.types import Grade
from tests.attacks import hostile

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel tier is Linux's"
)

RUNTIME, SERVER = "python_grader_runtime_error", "python_grader_server_error"
PATIENT, HASTY = 20.0, 0.8
SPARE = 5.0
"""What a busy machine may add to a limit. What is late by mistake hangs for PATIENT or for ever."""
SAMPLE, ITEM = {"output_text": "Paris"}, {"answer": "Paris"}
GRADER = f"""{inspect.getsource(hostile)}

def grade(sample, item):
    if "how" in item:
        return globals()[item["how"]](sample, item)
    return float(sample["output_text"] == item["answer"])
"""
"""Misbehaves as its item says, and is honest when it says nothing."""


@dataclass(frozen=True)
class Case:
    how: Callable[..., object]
    reward: float | None
    flag: str | None = RUNTIME
    details: str = ""
    """Stands in the flag's details."""
    timeout_seconds: float = PATIENT


def gives(how: Callable[..., object], reward: float) -> Case:
    """Odd, but a number."""
    return Case(how, reward, None)


def fault(how: Callable[..., object], details: str) -> Case:
    """The sample's own: 0."""
    return Case(how, 0.0, RUNTIME, details)


def hangs(how: Callable[..., object]) -> Case:
    return Case(how, None, RUNTIME, f"timeout after {HASTY:g} s", HASTY)


def memory(how: Callable[..., object], details: str = "memory limit 512 MB") -> Case:
    return Case(how, None, RUNTIME, details)


CASES = [
    fault(hostile.returns_nan, "grade returned nan (float); it must return a finite number"),
    fault(hostile.returns_infinity, "grade returned inf (float)"),
    fault(hostile.returns_minus_infinity, "grade returned -inf (float)"),
    fault(hostile.returns_too_large_literal, "grade returned inf (float)"),
    fault(hostile.returns_nothing, "grade returned None (NoneType)"),
    fault(hostile.returns_text, "grade returned '1.0' (str)"),
    fault(hostile.returns_bytes, "grade returned b'1.0' (bytes)"),
    gives(hostile.returns_true, 1.0),
    gives(hostile.returns_numpy_float, 0.5),
    fault(hostile.returns_numpy_nan, "nan"),
    gives(hostile.returns_array_of_one, 0.25),
    fault(hostile.returns_array_of_many, "TypeError"),
    fault(hostile.returns_complex, "grade returned (1+0j) (complex)"),
    fault(hostile.returns_huge_integer, "OverflowError: int too large to convert to float"),
    fault(hostile.returns_huge_unprintable_integer, "OverflowError"),
    gives(hostile.returns_decimal, 0.25),
    fault(hostile.returns_decimal_nan, "ValueError"),
    gives(hostile.returns_fraction, 0.25),
    fault(hostile.returns_raising_float, "ValueError: no number today"),
    fault(hostile.returns_text_float, "TypeError"),
    fault(hostile.returns_exiting_float, "grade ended its process with exit code 0"),
    fault(hostile.returns_lying_float, "grade returned"),
    fault(hostile.returns_hostile_repr, "(HostileRepr); it must return a finite number"),
    fault(hostile.returns_nameless, ""),
    fault(hostile.returns_list, "grade returned [1.0] (list)"),
    fault(hostile.returns_dict_of_itself, "(dict)"),
    fault(hostile.returns_exponential_list, "(list)"),
    fault(hostile.returns_generator, "(generator)"),
    fault(hostile.returns_coroutine, "(coroutine)"),
    fault(hostile.returns_lambda, "(function)"),
    gives(hostile.returns_least_float, 5e-324),
    Case(hostile.returns_largest_float, 0.0, "other_error", "lies beyond ±1e+09"),
    fault(hostile.raises, "ValueError: no such thing"),
    fault(hostile.raises_base_exception, "OwnBaseException: beyond Exception"),
    fault(hostile.raises_keyboard_interrupt, "KeyboardInterrupt"),
    fault(hostile.raises_generator_exit, "GeneratorExit"),
    fault(hostile.raises_stop_iteration, "StopIteration: 1.0"),
    fault(hostile.raises_system_exit, "SystemExit: 1.0"),
    memory(hostile.raises_memory_error),
    fault(hostile.raises_hostile_text, "HostileText"),
    fault(hostile.raises_exiting_text, "exit code 0"),
    fault(hostile.raises_number_text, "NumberText"),
    fault(hostile.raises_long_text, "xxxx"),
    fault(hostile.raises_lone_surrogates, "ValueError"),
    fault(hostile.raises_nul_and_controls, "ValueError"),
    fault(hostile.raises_long_chain, "ValueError"),
    fault(hostile.raises_circle, "ValueError: 1"),
    fault(hostile.raises_group, ""),
    fault(hostile.raises_syntax_error_of_its_own, "SyntaxError"),
    fault(hostile.raises_in_a_destructor, "ValueError: early"),
    fault(hostile.divides_by_zero, "ZeroDivisionError: division by zero"),
    fault(hostile.misses_a_key, "KeyError: 'no such key'"),
    fault(hostile.exits, "grade ended its process with exit code 0 before it returned"),
    fault(hostile.exits_in_a_thread, "exit code 7"),
    fault(hostile.aborts, "by signal 6 (Aborted)"),
    fault(hostile.reads_from_nowhere, "by signal 11 (Segmentation fault)"),
    fault(hostile.jumps_to_nowhere, "by signal 11 (Segmentation fault)"),
    fault(hostile.overflows_the_stack_in_c, "by signal 11 (Segmentation fault)"),
    fault(hostile.kills_itself, "PermissionError: [Errno 1] Operation not permitted"),
    fault(hostile.ends_itself_with_sigterm, "grade returned None"),  # a signal for the job
    fault(hostile.floods_its_result, "something that is not a result"),
    fault(hostile.kills_its_parent, "PermissionError"),
    fault(hostile.signals_everybody, "PermissionError"),
    fault(hostile.signals_its_group, "PermissionError"),
    fault(hostile.calls_an_unknown_system_call, "no such call"),
    fault(hostile.waits_for_input, "EOFError"),
    memory(hostile.hoards_a_list),
    memory(hostile.doubles_a_list),
    memory(hostile.hoards_small_objects),
    memory(hostile.hoards_a_text),
    memory(hostile.hoards_an_array),
    memory(hostile.hoards_a_map),
    memory(hostile.copies_deeply),
    memory(hostile.expands_a_text),
    fault(hostile.hoards_files_in_memory, "PermissionError"),
    fault(hostile.hoards_pipes, "Too many open files"),
    fault(hostile.starts_endless_threads, "can't start new thread"),
    fault(hostile.forks_a_bomb, "PermissionError"),
    fault(hostile.starts_a_program, "PermissionError"),
    fault(hostile.opens_files_without_end, "Too many open files"),
    fault(hostile.writes_a_large_file, "File too large"),
    memory(hostile.fills_the_disk, "disk limit 1024 MB"),
    memory(hostile.hides_what_fills_the_disk, "disk limit 1024 MB"),
    gives(hostile.makes_deep_folders, 1.0),
    fault(hostile.removes_its_folder, "PermissionError"),
    fault(hostile.renames_its_folder, "PermissionError"),
    fault(hostile.closes_its_folder, "PermissionError"),
    gives(hostile.makes_closed_folders, 1.0),
    gives(hostile.makes_odd_names, 1.0),
    gives(hostile.points_out_of_its_folder, 1.0),
    fault(hostile.replaces_its_folder, "PermissionError"),
    fault(hostile.closes_everything, "exit code 1"),
    gives(hostile.closes_its_output, 1.0),
    fault(hostile.replaces_descriptors, "exit code 0"),
    fault(hostile.blocks_descriptors, "ValueError: all are blocking"),
    fault(hostile.prints_bytes, "\ufffd\ufffd\ufffd bytes"),
    gives(hostile.prints_much, 1.0),
    fault(hostile.prints_secretly, "exit code 3 before it returned"),
    # what grade's own process says is grade's answer: a forged number is worth a returned one
    gives(hostile.forges_a_result, 777.0),
    fault(hostile.forges_nan, "something that is not a result"),
    fault(hostile.forges_a_timeout, "something that is not a result"),
    fault(hostile.forges_a_broken_sandbox, "something that is not a result"),
    fault(hostile.forges_garbage, "something that is not a result"),
    fault(hostile.forges_a_huge_frame, "something that is not a result"),
    fault(hostile.forges_half_a_frame, "exit code 0"),
    fault(hostile.forges_a_deep_frame, "something that is not a result"),
    fault(hostile.forges_details_that_are_no_text, ""),
    fault(hostile.forges_a_huge_number, "something that is not a result"),
    fault(hostile.forges_a_list_as_reward, "something that is not a result"),
    fault(hostile.recurses, "RecursionError: maximum recursion depth exceeded"),
    fault(hostile.recurses_through_c, ""),
    fault(hostile.changes_limits, ""),
    memory(hostile.lifts_its_limits),
    gives(hostile.limits_its_files, 1.0),
    # who is killed without a word was killed by the machine, as far as anybody can see
    memory(hostile.limits_its_time),
    fault(hostile.patches_builtins, ""),
    fault(hostile.patches_what_the_worker_uses, ""),
    gives(hostile.empties_the_modules, 1.0),
    gives(hostile.patches_its_own_grader, 0.5),
    gives(hostile.leaves_a_sleeping_thread, 0.5),
    gives(hostile.leaves_at_exit, 0.5),
    gives(hostile.leaves_signal_handlers, 0.5),
    fault(hostile.leaves_a_thread, ""),
    fault(hostile.traces_everything, "ValueError: traced"),
    fault(hostile.profiles_everything, "exit code 0"),
    gives(hostile.plays_with_the_collector, 0.5),
    fault(hostile.compiles_a_bomb, ""),
    memory(hostile.crashes_the_compiler),
    gives(hostile.runs_asynchronously, 0.5),
    fault(hostile.sets_a_dump_for_later, "exit code 1"),
    fault(hostile.corrupts_an_object, ""),
]

NEVER_END = [
    hangs(hostile.returns_endless_float),
    hangs(hostile.returns_endless_repr),
    hangs(hostile.raises_endless_text),
    hangs(hostile.stops_itself),
    hangs(hostile.loops),
    hangs(hostile.sleeps),
    hangs(hostile.ignores_all_signals),
    hangs(hostile.catches_everything),
    hangs(hostile.matches_a_catastrophic_pattern),
    hangs(hostile.computes_in_c),
    hangs(hostile.closes_everything_and_sleeps),
    hangs(hostile.deadlocks),
    hangs(hostile.prints_for_ever),
    hangs(hostile.leaves_the_group),
    Case(hostile.makes_files_without_end, None, RUNTIME, "", HASTY),
    hangs(hostile.switches_threads_rarely),
]


def opened(source: str, timeout_seconds: float) -> Grader:
    settings = GradingSettings(sandbox="kernel", timeout_seconds=timeout_seconds, memory_mb=512)
    return open_grader(Python(type="python", source=source), settings)


@pytest.fixture(scope="module")
def graders() -> Iterator[dict[float, Grader]]:
    """One grader for all samples of a time limit, as in a run: what one leaves behind meets the next."""
    opened_graders = {seconds: opened(GRADER, seconds) for seconds in (PATIENT, HASTY)}
    yield opened_graders
    for grader in opened_graders.values():
        grader.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may empty."""
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    (tmp_path / "outside" / "inner" / "file").write_text("precious")
    yield tmp_path / "outside"
    assert (tmp_path / "outside" / "inner" / "file").read_text() == "precious"
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o755


def timed(grader: Grader, item: dict[str, object]) -> tuple[Grade, float]:
    started = time.monotonic()
    return grader.grade(SAMPLE, item), time.monotonic() - started


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.how.__name__)
def test_a_hostile_sample(case: Case, graders: dict[float, Grader], outside: Path) -> None:
    check_sample(case, graders[PATIENT], outside)


def test_samples_that_never_end(graders: dict[float, Grader], outside: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda case: check_sample(case, graders[HASTY], outside), NEVER_END))


def check_sample(case: Case, grader: Grader, outside: Path) -> None:
    grader.grade(SAMPLE, ITEM)  # a process is there
    item = ITEM | {"how": case.how.__name__, "outside": str(outside)}
    grade, seconds = timed(grader, item)
    assert grade.reward == case.reward, (case.how, grade.errors)
    assert list(grade.errors) == ([case.flag] if case.flag else []), (case.how, grade.errors)
    assert case.details in "".join(grade.errors.values()), case.how
    assert all(len(details.encode()) < 9000 for details in grade.errors.values())
    assert seconds < case.timeout_seconds + SPARE, case.how
    assert grader.grade(SAMPLE, ITEM).reward == 1.0
    assert grader.grade({"output_text": "Rome"}, ITEM).reward == 0.0


@pytest.mark.long
def test_a_hundred_thousand_files(graders: dict[float, Grader]) -> None:
    grader = graders[PATIENT]
    assert grader.grade(SAMPLE, ITEM | {"how": "makes_many_files"}).reward in (1.0, None)
    assert grader.grade(SAMPLE, ITEM).reward == 1.0


@dataclass(frozen=True)
class LoadCase:
    how: Callable[..., object]
    flag: str = RUNTIME
    details: str = ""


FAIL_WHEN_LOADED = [
    LoadCase(hostile.at_load_raises, details="ValueError: not today"),
    LoadCase(hostile.at_load_exits, details="the source ended its process before any sample"),
    LoadCase(hostile.at_load_leaves, details="SystemExit: 0"),
    LoadCase(hostile.at_load_interrupts, details="KeyboardInterrupt"),
    LoadCase(hostile.at_load_raises_hostile_text, details="HostileText"),
    LoadCase(hostile.at_load_raises_lone_surrogates, details="ValueError"),
    LoadCase(hostile.at_load_raises_long_text, details="xxxx"),
    LoadCase(hostile.at_load_recurses, details="RecursionError"),
    LoadCase(hostile.at_load_aborts, details="exit code -6"),
    LoadCase(hostile.at_load_crashes, details="exit code -11"),
    LoadCase(hostile.at_load_hoards, details="MemoryError"),
    LoadCase(hostile.at_load_starts_endless_threads, details="can't start new thread"),
    LoadCase(hostile.at_load_closes_everything, details="ended its process before any sample"),
    LoadCase(hostile.at_load_signals_its_parent, details="PermissionError"),
]
"""No sample ever gets a reward."""

NEVER_LOAD = [
    LoadCase(hostile.at_load_loops, details="timeout after 0.8 s while the source ran"),
    LoadCase(hostile.at_load_ignores_all_signals, details="timeout after 0.8 s"),
    LoadCase(hostile.at_load_stops_itself, details="timeout after 0.8 s"),
    LoadCase(hostile.at_load_resets_timers, details="timeout after 0.8 s"),
    LoadCase(hostile.at_load_forks_and_hangs, details="timeout after 0.8 s"),
    LoadCase(hostile.at_load_forks_a_bomb, details="timeout after 0.8 s"),
    LoadCase(hostile.at_load_prints_for_ever, details="timeout after 0.8 s"),
]

TAKE_THE_WORKERS_PLACE = [
    LoadCase(hostile.at_load_answers_a_list, SERVER),
    LoadCase(hostile.at_load_answers_a_huge_number, SERVER),
    LoadCase(hostile.at_load_answers_nan, SERVER),
    LoadCase(hostile.at_load_answers_a_kind_of_its_own, SERVER),
    LoadCase(hostile.at_load_answers_no_object, SERVER),
    LoadCase(hostile.at_load_answers_garbage, SERVER),
    LoadCase(hostile.at_load_answers_too_much, SERVER),
]
"""What they answer is no reply."""

BREAK_THE_WORKER = (
    hostile.at_load_removes_its_folder,
    hostile.at_load_patches_builtins,
    hostile.at_load_patches_the_worker,
    hostile.at_load_never_forks,
    hostile.at_load_never_ends_samples,
    hostile.at_load_says_ready_itself,
    hostile.at_load_answers_odd_details,
    hostile.at_load_answers_deep_details,
    hostile.at_load_answers_long_details,
    hostile.at_load_answers_lone_surrogates,
)
"""The author of a source can make its grades worthless, but neither late nor anything but grades."""

GRADE_ALL_THE_SAME = (
    hostile.at_load_hides_grade,
    hostile.at_load_ignores_signals,
    hostile.at_load_handles_children,
    hostile.at_load_leaves_an_alarm,
    hostile.at_load_leaves_a_thread,
    hostile.at_load_leaves_a_busy_thread,
    hostile.at_load_leaves_something_at_exit,
    hostile.at_load_leaves_its_group,
    hostile.at_load_forks_a_child_that_stays,
    hostile.at_load_forks_a_child_that_goes_on,
    hostile.at_load_moves,
    hostile.at_load_masks,
    hostile.at_load_closes_output,
    hostile.at_load_closes_input,
    hostile.at_load_signals_everybody,
    hostile.at_load_fills_its_folder,
    hostile.at_load_lowers_limits,
    hostile.at_load_hoards_most,
    hostile.at_load_traces,
    hostile.at_load_empties_the_modules,
    hostile.at_load_disables_the_collector,
    hostile.at_load_prints_much,
    hostile.at_load_changes_its_environment,
    hostile.at_load_becomes_traceable,
    hostile.at_load_outlives,
)


def source_that(how: Callable[..., object], outside: Path | str = "") -> str:
    return f"{inspect.getsource(hostile)}\nOUTSIDE = {str(outside)!r}\n" + (
        "def grade(sample, item):\n"
        "    return float(sample['output_text'] == item['answer'])\n"
        f"{how.__name__}()\n"
    )


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The SIGURG that reached this process."""
    received: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize("case", FAIL_WHEN_LOADED, ids=lambda case: case.how.__name__)
def test_a_source_that_fails_when_it_is_loaded(case: LoadCase, signals: list[int]) -> None:
    check_source(case, PATIENT)
    assert signals == []


def test_sources_that_are_never_loaded() -> None:
    with ThreadPoolExecutor(4) as threads:
        cases = [*NEVER_LOAD, *TAKE_THE_WORKERS_PLACE]
        list(threads.map(lambda case: check_source(case, HASTY), cases))


def check_source(case: LoadCase, timeout_seconds: float) -> None:
    with opened(source_that(case.how), timeout_seconds) as grader:
        first, seconds = timed(grader, ITEM)
        second, again = timed(grader, ITEM)
    for grade in (first, second):
        assert grade.reward is None, (case.how, grade.errors)
        assert list(grade.errors) == [case.flag], (case.how, grade.errors)
        assert case.details in grade.errors[case.flag], case.how
        assert len(grade.errors[case.flag].encode()) < 9000, case.how
    # its time starts when its process has started
    assert max(seconds, again) < timeout_seconds + SPARE, case.how
    assert case.flag == SERVER or again < HASTY / 2, "a source that failed is not run again"


@pytest.mark.parametrize("how", BREAK_THE_WORKER, ids=lambda how: how.__name__)
def test_a_source_that_breaks_its_worker(how: Callable[..., object]) -> None:
    with opened(source_that(how), HASTY) as grader:
        for _ in range(2):
            grade, seconds = timed(grader, ITEM)
            assert grade.reward in (1.0, 0.0, None)
            assert set(grade.errors) <= {RUNTIME, SERVER}, grade.errors
            assert all(len(details.encode()) < 9000 for details in grade.errors.values())
            assert seconds < HASTY + SPARE


@pytest.mark.parametrize("how", GRADE_ALL_THE_SAME, ids=lambda how: how.__name__)
def test_a_source_that_is_odd_when_it_is_loaded(
    how: Callable[..., object], signals: list[int]
) -> None:
    with opened(source_that(how), PATIENT) as grader:
        for text, reward in (("Paris", 1.0), ("Rome", 0.0), ("Paris", 1.0)):
            grade = grader.grade({"output_text": text}, ITEM)
            assert grade.reward == reward, grade.errors
            assert grade.errors == {}
    assert signals == []


def test_a_source_that_points_out_of_its_folder(outside: Path) -> None:
    source = source_that(hostile.at_load_points_out_of_its_folder, outside)
    with opened(source, PATIENT) as grader:
        for _ in range(3):
            grader.grade(SAMPLE, ITEM)


def test_every_misbehaviour_is_tried() -> None:
    tried = {case.how.__name__ for case in [*CASES, *NEVER_END, *FAIL_WHEN_LOADED]}
    tried |= {case.how.__name__ for case in [*NEVER_LOAD, *TAKE_THE_WORKERS_PLACE]}
    tried |= {how.__name__ for how in (*BREAK_THE_WORKER, *GRADE_ALL_THE_SAME)}
    tried |= {"makes_many_files", "at_load_answers_with", "at_load_points_out_of_its_folder"}
    made = {
        name
        for name, value in vars(hostile).items()
        if inspect.isfunction(value) and value.__module__ == hostile.__name__
    }
    assert made - tried == {"frame", "write_everywhere"}
