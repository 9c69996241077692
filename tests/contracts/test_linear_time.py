"""Loading takes time that grows like what is loaded: rows, lines, nesting, documents, faults.

Once with sizes that take milliseconds, and with `scripts/test --long` with larger ones.
"""

import gc
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from rft.data.examples import readable_examples
from rft.errors import UserError
from rft.job import DataSettings, load_job
from rft.job.mend import mended
from rft.job.places import Fault

ROOT = Path(__file__).parents[2]
TIMES = 8
"""How many times larger the larger one is."""
MARGIN = 2.5
"""Quadratic time would be TIMES times too much."""
REPEATS = 2
SCALES = (1, pytest.param(4, marks=pytest.mark.long))
ROW = json.dumps({"messages": [{"role": "user", "content": "Name a colour."}], "answer": 4})
JOB = (ROOT / "configs/smoke/job.yaml").read_text()


@dataclass(frozen=True)
class Growing:
    """Something to load in any size."""

    name: str
    size: int
    """Of the smaller one."""
    content: Callable[[int], str]
    settings: Callable[[int], DataSettings] = lambda size: DataSettings()
    overrides: Callable[[int], Sequence[str]] = lambda size: ()


def cpu_seconds(load: Callable[[], object]) -> float:
    gc.disable()  # it works in steps, which are no matter of the loader's
    try:
        started = time.process_time()
        with suppress(UserError):
            load()
        return time.process_time() - started
    finally:
        gc.enable()


def assert_linear(small: Callable[[], object], large: Callable[[], object]) -> None:
    """Best times, taken in turn, so that a busy machine slows both."""
    pairs = [(cpu_seconds(small), cpu_seconds(large)) for _ in range(REPEATS)]
    small_seconds, large_seconds = (min(times) for times in zip(*pairs, strict=True))
    ratio = large_seconds / small_seconds
    print(f"{1000 * small_seconds:.1f} ms, {1000 * large_seconds:.1f} ms, ratio {ratio:.1f}")
    assert ratio < MARGIN * TIMES


def in_messages(value: str) -> str:
    return f'{{"messages": {value}}}'


DATA = [
    Growing("good rows", 1_000, lambda n: f"{ROW}\n" * n),
    Growing("bad rows", 1_000, lambda n: '{"messages": [{"role": "human"}]}\n' * n),
    Growing("rows that are no JSON", 1_000, lambda n: f"{ROW[:-1]}\n" * n),
    Growing("blank lines", 20_000, lambda n: "\n" * n),
    Growing("a long text", 500_000, lambda n: in_messages(f'"{"x" * n}"')),
    Growing("a long text with escapes", 50_000, lambda n: in_messages('"' + "\\u00e9\\n" * n + '"')),
    Growing("a long number", 500_000, lambda n: in_messages("1" * n)),
    Growing("a long fraction", 500_000, lambda n: in_messages("1." + "1" * n)),
    Growing("a line that is too long", 10_000_000, lambda n: "x" * n),
    Growing("many values", 25_000, lambda n: in_messages("[" + "[], " * n + "0]")),
    Growing("many keys", 5_000, lambda n: "{" + "".join(f'"{i}": 0, ' for i in range(n)) + '"": 0}'),
    Growing("many messages", 1_000, lambda n: in_messages("[" + '{"role": "assistant", "content": "x"}, ' * n + "0]")),
    Growing("deep lists", 50_000, lambda n: in_messages("[" * n + "]" * n)),
    Growing("deep objects", 50_000, lambda n: '{"a": ' * n + "0" + "}" * n),
    Growing("an open template", 3_000, lambda n: ROW, lambda n: DataSettings(fields={"prompt": "{{" * n})),
    Growing(
        "a long template",
        500,
        lambda n: f"{ROW}\n" * 9,
        lambda n: DataSettings(fields={"prompt": "{{ answer }} " * n}),
    ),
]  # fmt: skip


def graders(count: int, grader: str) -> str:
    """A job with many graders."""
    start, end = JOB.index("      type: python"), JOB.index("    hyperparameters:")
    parts = "".join(f"        k{i}: {grader}\n" for i in range(count))
    multi = "      type: multi\n      calculate_output: '1'\n      graders:\n"
    return JOB[:start] + multi + parts + JOB[end:]


def keys(count: int, value: str = "x") -> str:
    return "{" + ", ".join(f"k{i}: {value}" for i in range(count)) + "}"


JOBS = [
    Growing("comments", 1_000, lambda n: "# a comment\n" * n + JOB),
    Growing("blank lines", 10_000, lambda n: JOB + "\n" * n),
    Growing("a long text", 4_000, lambda n: f'{JOB}metadata: {{a: "{"x " * n}"}}\n'),
    Growing("a long block", 1_000, lambda n: f"{JOB}metadata:\n  a: |\n{'    a line' * n}\n"),
    Growing("a long word", 30_000, lambda n: f"{JOB}metadata: {{a: {'x' * n}}}\n"),
    Growing("a long list", 200, lambda n: f"{JOB}engine: {{rollout: {{stop: [{'x, ' * n}]}}}}\n"),
    Growing("many keys", 100, lambda n: JOB.replace("engine:\n", f"engine:\n  data: {{fields: {keys(n)}}}\n")),
    Growing("merged keys", 600, lambda n: f"{JOB}metadata: {{<<: {keys(n)}}}\n"),
    Growing("aliases", 300, lambda n: f"{JOB}metadata: {{a: &a x, b: [{'*a, ' * n}]}}\n"),
    Growing("many graders", 10, lambda n: graders(n, "{type: python, source: 'grade = 1'}")),
    Growing("judges without anything", 100, lambda n: graders(n, "{type: score_model}")),
    Growing("faulty graders", 50, lambda n: graders(n, "{type: string_check, x: 1}")),
    Growing("unknown keys", 200, lambda n: JOB + "".join(f"k{i}: 1\n" for i in range(n))),
    Growing("keys twice", 200, lambda n: JOB + "k: 1\n" * n),
    Growing("keys that are no text", 200, lambda n: JOB + "".join(f"{i}: 1\n" for i in range(n))),
    Growing("wrong entries", 200, lambda n: f"{JOB}integrations: [{'3, ' * n}]\n"),
    Growing("too many values", 2_500, lambda n: f"{JOB}integrations: [{'3, ' * n}]\n"),
    Growing("deep lists", 5_000, lambda n: "[" * n),
    Growing("deep mappings", 10_000, lambda n: '{"a": ' * n),
    Growing("a tab at the end", 2_000, lambda n: JOB + "# a comment\n" * n + "\tx"),
    Growing("a control character at the end", 10_000, lambda n: JOB + "# a comment\n" * n + "\0"),
    Growing("too long a document", 2_000_001, lambda n: "x" * n),
    Growing("overrides", 20, lambda n: JOB, overrides=lambda n: [f"engine.k{i}=1" for i in range(n)]),
    Growing("too many overrides", 201, lambda n: JOB, overrides=lambda n: ["seed=1"] * n),
]  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("growing", DATA, ids=lambda growing: growing.name)
def test_reading_data_takes_linear_time(growing: Growing, scale: int, tmp_path: Path) -> None:
    def reading(size: int) -> Callable[[], object]:
        path, settings = tmp_path / f"{size}.jsonl", growing.settings(size)
        path.write_text(growing.content(size))
        return lambda: readable_examples(str(path), settings, field="training_file", minimum=1)

    assert_linear(reading(scale * growing.size), reading(scale * TIMES * growing.size))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("growing", JOBS, ids=lambda growing: growing.name)
def test_reading_a_job_takes_linear_time(growing: Growing, scale: int, tmp_path: Path) -> None:
    def reading(size: int) -> Callable[[], object]:
        path, overrides = tmp_path / f"{size}.yaml", growing.overrides(size)
        path.write_text(growing.content(size))
        return lambda: load_job(path, overrides)

    assert_linear(reading(scale * growing.size), reading(scale * TIMES * growing.size))


def test_mending_many_faults_takes_linear_time() -> None:
    def mending(size: int) -> Callable[[], object]:
        document = {f"k{i}": i for i in range(size)}
        faults = [Fault((key,), "unknown", "") for key in document]
        return lambda: mended(document, faults)

    assert_linear(mending(2_000), mending(TIMES * 2_000))
