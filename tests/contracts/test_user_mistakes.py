"""What a person gets wrong in a job, its data or its grader, and what is said about it: a table.

Each mistake ends in one message with its place and what to do, under an error of exit code 2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rft.cli.main import main
from rft.data import load_examples
from rft.errors import DataError, JobError, NotYetError, UserError
from rft.job import load_job

JOB = """\
model: smollm2-135m-instruct
training_file: train.jsonl
validation_file: valid.jsonl
method:
  type: reinforcement
  reinforcement:
    grader:
      type: string_check
      name: exact
      input: "{{ sample.output_text }}"
      reference: "{{ item.answer }}"
      operation: eq
"""
ROW = json.dumps({"messages": [{"role": "user", "content": "2+2?"}], "answer": "4"})
GRADER = JOB[JOB.index("      type: string_check") :]
JUDGE = """\
      type: score_model
      name: judge
      model: m
      input: [{role: user, content: "{{ sample.output_text }}"}]
"""
LAST = JOB.count("\n") + 1
"""The line that stands after the job."""


@dataclass(frozen=True)
class Mistake:
    name: str
    error: type[UserError]
    what: str
    """Stands in the message."""
    where: str
    """The place; a file's name stands for its path."""
    remedy: str
    """Stands in what the message says to do."""
    job: str = JOB
    overrides: tuple[str, ...] = ()
    train: bytes = "\n".join([ROW] * 10).encode()
    remove: tuple[str, ...] = field(default=())
    """Files that are missing."""


def replaced(old: str, new: str) -> str:
    assert JOB.count(old) == 1
    return JOB.replace(old, new)


def added(text: str) -> str:
    return JOB + text + "\n"


def rows(*bad: str) -> bytes:
    return "\n".join([*[ROW] * 10, *bad]).encode()


def python_job(source: str) -> str:
    start = JOB.index("      type: string_check")
    return JOB[:start] + f"      type: python\n      name: p\n      source: |\n        {source}\n"


MISTAKES = [
    # The document as text
    Mistake(
        "no job file",
        JobError,
        "no such job file",
        "job.yaml",
        "check the path",
        remove=("job.yaml",),
    ),
    Mistake("an empty job file", JobError, "is empty", "job.yaml:1:1", "write a job", job=""),
    Mistake(
        "a list for a job",
        JobError,
        "is not a mapping",
        "job.yaml:1:1",
        "key: value",
        job="- model: x\n",
    ),
    Mistake(
        "tabs",
        JobError,
        "found character '\\t'",
        f"job.yaml:{LAST + 1}:1",
        "indent with spaces",
        job=added("engine:\n\tlora: {rank: 8}"),
    ),
    Mistake(
        "a key twice",
        JobError,
        "`model` stands twice, first at line 1, column 1",
        f"job.yaml:{LAST}:1",
        "keep one",
        job=added("model: other"),
    ),
    Mistake(
        "a template without quotes",
        JobError,
        "a mapping or list stands where a key is wanted",
        "job.yaml:10:15",
        'needs quotes: "{{ … }}"',
        job=replaced('"{{ sample.output_text }}"', "{{ sample.output_text }}"),
    ),
    Mistake(
        "two documents",
        JobError,
        "a second document",
        f"job.yaml:{LAST}:1",
        "one job per file",
        job=added("---\nmodel: x"),
    ),
    # Keys
    Mistake(
        "a misspelt key",
        JobError,
        "unknown key `sede`",
        f"job.yaml:{LAST}:1",
        "did you mean `seed`?",
        job=added("sede: 3"),
    ),
    Mistake(
        "a key of another section",
        JobError,
        "unknown key `learning_rate`",
        f"job.yaml:{LAST}:1",
        "it belongs at engine.training.learning_rate",
        job=added("learning_rate: 1e-4"),
    ),
    Mistake(
        "the deprecated hyperparameters",
        JobError,
        "unknown key `hyperparameters`",
        f"job.yaml:{LAST}:1",
        "it belongs at method.reinforcement.hyperparameters",
        job=added("hyperparameters: {n_epochs: 3}"),
    ),
    Mistake(
        "no validation file",
        JobError,
        "`validation_file` is missing",
        "job.yaml:1:1",
        "add `validation_file: …`",
        job=replaced("validation_file: valid.jsonl\n", ""),
    ),
    Mistake(
        "an override that names nothing",
        JobError,
        "unknown key `trainig` in engine",
        "override engine.trainig.lr=1e-4",
        "did you mean `training`?",
        overrides=("engine.trainig.lr=1e-4",),
    ),
    Mistake(
        "an override without a value",
        JobError,
        "not an override",
        "override seed",
        "write key.sub=value",
        overrides=("seed",),
    ),
    # Values
    Mistake(
        "a quoted number",
        JobError,
        "seed is the text '8'",
        f"job.yaml:{LAST}:7",
        "remove the quotes",
        job=added('seed: "8"'),
    ),
    Mistake(
        "a boolean for a number",
        JobError,
        "seed is true",
        f"job.yaml:{LAST}:7",
        "true and false are no numbers",
        job=added("seed: true"),
    ),
    Mistake(
        "yes for true",
        JobError,
        "engine.training.mask_truncated is the text 'yes'",
        "override engine.training.mask_truncated=yes",
        "write true or false",
        overrides=("engine.training.mask_truncated=yes",),
    ),
    Mistake(
        "out of range",
        JobError,
        "engine.rollout.top_p is 1.5",
        f"job.yaml:{LAST}:27",
        "write a number above 0 and of at most 1",
        job=added("engine: {rollout: {top_p: 1.5}}"),
    ),
    Mistake(
        "an epoch too many",
        JobError,
        "n_epochs is 51",
        "override method.reinforcement.hyperparameters.n_epochs=51",
        "auto or a whole number from 1 to 50",
        overrides=("method.reinforcement.hyperparameters.n_epochs=51",),
    ),
    Mistake(
        "not a number",
        JobError,
        ".nan is not a finite number",
        f"job.yaml:{LAST}:37",
        "write a finite number",
        job=added("engine: {training: {importance_cap: .nan}}"),
    ),
    Mistake(
        "a misspelt choice",
        JobError,
        "engine.training.loss is the text 'grop'",
        "override engine.training.loss=grop",
        "did you mean grpo?",
        overrides=("engine.training.loss=grop",),
    ),
    Mistake(
        "a name that cannot be a folder's",
        JobError,
        "suffix is the text 'My Run'",
        f"job.yaml:{LAST}:9",
        "[a-z0-9-]{1,64}",
        job=added("suffix: My Run"),
    ),
    Mistake(
        "more minibatches than prompts",
        JobError,
        "minibatches (16) is more than batch_size (8)",
        "override engine.training.minibatches=16",
        "lower minibatches",
        overrides=(
            "method.reinforcement.hyperparameters.batch_size=8",
            "engine.training.minibatches=16",
        ),
    ),
    # The grader
    Mistake(
        "an unknown grader",
        JobError,
        "grader.type is the text 'exact_match'",
        "job.yaml:8:13",
        "legal:",
        job=replaced("string_check", "exact_match"),
    ),
    Mistake(
        "an unknown operation",
        JobError,
        "grader.operation is the text 'equals'",
        "job.yaml:12:18",
        "one of eq, ne",
        job=replaced("operation: eq", "operation: equals"),
    ),
    Mistake(
        "a misspelt key in a grader",
        JobError,
        "unknown key `referense` in method.reinforcement.grader",
        "job.yaml:12:7",
        "did you mean `reference`?",
        job=replaced("      operation", "      referense: x\n      operation"),
    ),
    Mistake(
        "a template of no namespace",
        JobError,
        "`{{ output_text }}` is not a template expression",
        "job.yaml:10:14",
        "{{ item.field }}",
        job=replaced("sample.output_text", "output_text"),
    ),
    Mistake(
        "a grader that does not compile",
        JobError,
        "grader.source: line 1",
        "job.yaml:10:15",
        "mend the Python source",
        job=python_job("def grade(sample, item) return 1"),
    ),
    Mistake(
        "a grader without grade",
        JobError,
        "defines no function grade",
        "job.yaml:10:15",
        "def grade(sample, item)",
        job=python_job("def score(sample, item): return 1"),
    ),
    # Not built yet
    Mistake(
        "another method",
        NotYetError,
        "method.type: dpo is not built yet",
        "job.yaml:5:9",
        "reinforcement",
        job=replaced("type: reinforcement", "type: dpo"),
    ),
    Mistake(
        "a judge without a question",
        JobError,
        "`method.reinforcement.grader.input` is missing",
        "job.yaml:7:5",
        "add `input: …`",
        job=replaced(
            GRADER,
            JUDGE.replace('      input: [{role: user, content: "{{ sample.output_text }}"}]\n', ""),
        ),
    ),
    Mistake(
        "a judge that is nowhere",
        JobError,
        "the environment has no NO_SUCH_KEY, the key for api.openai.com",
        "job.yaml:10:14",
        "or write model: local:base",
        job=replaced(GRADER, JUDGE.replace("m\n", "m\n      api_key_env: NO_SUCH_KEY\n", 1)),
    ),
    Mistake(
        "a label at the top",
        JobError,
        "a label_model stands only in a multi",
        "job.yaml:8:13",
        "make it a part of a multi",
        job=replaced(
            GRADER,
            JUDGE.replace("score_model", "label_model").replace("model: m", "model: local:base")
            + "      labels: [good, bad]\n      passing_labels: [good]\n",
        ),
    ),
    Mistake(
        "a grammar",
        NotYetError,
        "a response_format of type grammar is not built yet",
        "override method.reinforcement.response_format=",
        "json_schema",
        overrides=("method.reinforcement.response_format={type: grammar, grammar: x}",),
    ),
    Mistake(
        "a schema that cannot be enforced",
        JobError,
        'completions cannot be held to this schema: Unimplemented keys: ["uniqueItems"]',
        "override method.reinforcement.response_format=",
        "docs/structured-outputs.md",
        overrides=(
            "method.reinforcement.response_format={type: json_schema, name: s, "
            "schema: {type: array, uniqueItems: true}}",
        ),
    ),
    Mistake(
        "a schema without its place",
        JobError,
        "response_format of type json_schema without a schema",
        "override method.reinforcement.response_format=",
        "add json_schema: {name: …, schema: {…}}",
        overrides=("method.reinforcement.response_format={type: json_schema}",),
    ),
    Mistake(
        "a stop text in JSON",
        JobError,
        "a stop text would cut the JSON that response_format asks for",
        "override engine.rollout.stop=",
        "remove one of the two",
        overrides=(
            "method.reinforcement.response_format={type: json_object}",
            "engine.rollout.stop=[x]",
        ),
    ),
    Mistake(
        "vLLM with a nucleus",
        JobError,
        "top_p 0.9: vLLM does not tell which tokens it left out",
        "override engine.rollout.top_p=0.9",
        "native",
        overrides=("engine.rollout.engine=vllm", "engine.rollout.top_p=0.9"),
    ),
    # The data
    Mistake(
        "no training file",
        DataError,
        "training_file: no such file",
        "train.jsonl",
        "check the path",
        remove=("train.jsonl",),
    ),
    Mistake(
        "an empty training file",
        DataError,
        "the file is empty",
        "train.jsonl",
        "write rows",
        train=b"",
    ),
    Mistake(
        "too few rows",
        DataError,
        "has 1 example(s), but must have at least 10",
        "train.jsonl",
        "add rows",
        train=ROW.encode(),
    ),
    Mistake(
        "JSON, not JSONL",
        DataError,
        "JSON, not JSONL",
        "train.jsonl:1",
        "one object a line",
        train=f"[{ROW}]".encode(),
    ),
    Mistake(
        "a broken line",
        DataError,
        "not valid JSON",
        "train.jsonl:11",
        "one JSON object a line",
        train=rows(ROW[:-1]),
    ),
    Mistake(
        "no messages",
        DataError,
        'missing key "messages"',
        "train.jsonl:11",
        "engine.data.fields.prompt",
        train=rows('{"question": "2+2?", "answer": "4"}'),
    ),
    Mistake(
        "an answer at the end",
        DataError,
        "the last message is the assistant's",
        "train.jsonl:11 message 2",
        "end with the user's message",
        train=rows(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        ),
    ),
    Mistake(
        "an unknown role",
        DataError,
        'unknown role "human"',
        "train.jsonl:11 message 1",
        "legal: system",
        train=rows('{"messages": [{"role": "human", "content": "a"}]}'),
    ),
    Mistake(
        "another encoding",
        DataError,
        "not UTF-8: byte 0xe9",
        "train.jsonl:11",
        "save the file as UTF-8",
        train=rows("") + b'{"a": "\xe9"}',
    ),
    Mistake(
        "a tool without a name",
        DataError,
        "`tools[0]` has no name",
        "train.jsonl:11",
        "a name is 1 to 64 of a-z, A-Z, 0-9, _ and -",
        train=rows(ROW[:-1] + ', "tools": [{"type": "function"}]}'),
    ),
]


def prepare(folder: Path, mistake: Mistake) -> None:
    (folder / "job.yaml").write_text(mistake.job)
    (folder / "train.jsonl").write_bytes(mistake.train)
    (folder / "valid.jsonl").write_text(ROW)
    for name in mistake.remove:
        (folder / name).unlink()


def told(folder: Path, mistake: Mistake) -> UserError:
    """The error a person sees who makes this mistake."""
    prepare(folder, mistake)
    with pytest.raises(UserError) as raised:
        start(folder / "job.yaml", mistake.overrides)
    return raised.value


def start(path: Path, overrides: Sequence[str]) -> None:
    job = load_job(path, overrides)
    for key, minimum in (("training_file", 10), ("validation_file", 1)):
        load_examples(getattr(job, key), job.engine.data, field=key, minimum=minimum)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_once_with_its_place_and_its_remedy(
    mistake: Mistake, tmp_path: Path
) -> None:
    error = told(tmp_path, mistake)
    (problem,) = error.problems
    assert type(error) is mistake.error and error.exit_code == 2
    assert mistake.what in problem.what
    place = problem.where.replace(f"{tmp_path}/", "")
    assert place.startswith(mistake.where) if mistake.overrides else place == mistake.where
    assert mistake.remedy in problem.remedy
    assert "\n" not in str(error) and "Traceback" not in str(error)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_the_command_line_tells_it_in_a_line_and_exits_with_2(
    mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, mistake)
    assert main(["validate", str(tmp_path / "job.yaml"), *mistake.overrides]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    (line,) = told.err.splitlines()
    assert line.startswith("error: ") and " → " in line
    assert mistake.what in line and mistake.remedy in line


def test_many_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    job = JOB + "sede: 3\nsuffix: A\nengine:\n  lora: {rank: 0}\n  rollout: {top_p: 2, x: 1}\n"
    job = job.replace("operation: eq", "operation: equals")
    mistake = Mistake("many", JobError, "", "", "", job=job, overrides=("seed=x", "a=1"))
    error = told(tmp_path, mistake)
    places = [problem.where.replace(f"{tmp_path}/", "") for problem in error.problems]
    assert places == [
        "job.yaml:12:18",
        "job.yaml:13:1",
        "job.yaml:14:9",
        "job.yaml:16:16",
        "job.yaml:17:20",
        "job.yaml:17:23",
        "override a=1",
        "override seed=x",
    ]


def test_what_is_not_built_and_what_is_wrong_are_told_together(tmp_path: Path) -> None:
    overrides = ("engine.model.dtype=float16", "seed=-1")
    error = told(tmp_path, Mistake("both", JobError, "", "", "", overrides=overrides))
    assert type(error) is JobError
    assert [problem.what for problem in error.problems] == [
        "engine.model.dtype: float16 is not built yet",
        "seed is -1",
    ]
