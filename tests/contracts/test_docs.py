"""What README.md and ARCHITECTURE.md say is so: the tree, the commands, the example, the metrics."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from rft.cli.main import application
from rft.data import load_examples
from rft.graders import open_grader, template_problems
from rft.graders.sample import make_sample
from rft.job import Job, parse_job
from rft.job.not_yet import UNBUILT_VALUES
from rft.runs.results import results_columns
from rft.types import Item
from scripts import job_reference
from scripts.benchmark.page import write_page

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rft"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """The code spans outside fenced blocks."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", outside)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_figure_is_left_to_be_filled_in(name: str) -> None:
    assert re.findall("@@[A-Z_]+@@", (ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def tree() -> list[str]:
    """The paths of README's tree; a folder ends with a slash."""
    (lines,) = blocks(section(README, "The tree"), "")
    paths: list[str] = []
    folders: list[str] = []
    for line in lines.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, meaning = line.strip().partition(" ")
        assert meaning.strip(), f"{name} has no explanation"
        folders = folders[:depth]
        paths.append("".join(folders) + name)
        folders += [name] if name.endswith("/") else []
    return paths


def test_the_tree_is_that_of_the_package() -> None:
    modules = (path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
    actual = {path.removesuffix("__init__.py") for path in modules}
    told = [path for path in tree() if path.startswith("rft/")]
    assert len(told) == len(set(told))
    assert sorted(told) == sorted(actual)


def test_the_top_level_of_the_tree_is_there() -> None:
    told = [path for path in tree() if not path.startswith("rft/")]
    assert [path for path in told if not (ROOT / path).exists()] == []
    documents = {path.name for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt")}
    assert documents <= set(told)


def shown_commands() -> list[list[str]]:
    """The arguments of every `rft` that README shows in a block of commands."""
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    starts = [line.index("rft") for line in words if "rft" in line]
    commands = [line[start + 1 :] for line, start in zip(words, starts, strict=True)]
    assert len(commands) > 20
    return commands


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The parameters of the command that the arguments reach, as the command line reads them."""
    command: Any = typer.main.get_command(application())
    name, context, rest = "rft", None, list(arguments)
    while hasattr(command, "resolve_command") and rest:
        context = command.make_context(name, rest, parent=context)
        # what follows the name of a command is that command's
        following = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, rest = command.resolve_command(context, following)
    return dict(command.make_context(name, rest, parent=context).params)


@pytest.mark.parametrize("arguments", shown_commands(), ids=" ".join)
def test_a_command_in_readme_is_one(arguments: list[str]) -> None:
    parse(arguments)


def test_a_wrong_command_would_be_seen() -> None:
    for wrong in (["tain", "job.yaml"], ["train"], ["train", "job.yaml", "--procs", "2"]):
        with pytest.raises(typer.TyperException):
            parse(wrong)


def test_every_command_is_in_readme() -> None:
    root: Any = typer.main.get_command(application())
    shown = {words[0] for words in shown_commands()}
    assert shown == set(root.commands)
    told = {words[1] for words in shown_commands() if words[0] == "runs"}
    refused = {span.split()[2] for span in quoted(README) if span.startswith("rft runs ")}
    assert told | refused == set(root.commands["runs"].commands)


def test_a_command_named_in_passing_is_one() -> None:
    spans = [span for name in DOCUMENTS[:3] for span in quoted((ROOT / name).read_text("utf-8"))]
    commands = [shlex.split(span)[1:] for span in spans if span.startswith("rft ")]
    assert len(commands) > 8
    for arguments in commands:
        try:
            parse([word for word in arguments if word != "--help"])
        except typer.TyperException as error:
            if not str(error).startswith("Missing parameter"):
                raise


def example(tmp_path: Path) -> tuple[Job, list[Item]]:
    """The job and the rows of README's example."""
    (job_text,) = blocks(section(README, "A job"), "yaml")
    (rows,) = blocks(section(README, "A job"), "jsonl")
    job = parse_job(job_text, name="README.md", folder=tmp_path)
    (tmp_path / "train.jsonl").write_text(rows, encoding="utf-8")
    settings = job.engine.data
    examples = load_examples(job.training_file, settings, field="training_file", minimum=2)
    return job, [example.item for example in examples]


def test_the_example_is_a_job_and_earns_what_is_told(tmp_path: Path) -> None:
    job, items = example(tmp_path)
    assert template_problems(job.grader, [(str(n), item) for n, item in enumerate(items)]) == []
    told = {"Total: 15": 1.0, "It is 15.": 0.8, "Total: 14": 0.0}
    assert all(f"`{text}`" in section(README, "A job").replace("\n", " ") for text in told)
    with open_grader(job.grader) as grader:
        grades = {text: grader.grade(make_sample(text), items[0]) for text in told}
    assert {text: grade.errors for text, grade in grades.items()} == {text: {} for text in told}
    assert {text: grade.reward for text, grade in grades.items()} == told


def test_what_is_refused_is_told() -> None:
    told = " ".join(quoted(section(README, "What is not built")))
    refused = {value for values in UNBUILT_VALUES.values() for value in values}
    assert refused - set(re.findall(r"[\w+]+", told)) == set()


def normal(key: str) -> str:
    """A key with each of its variable parts as `<>`."""
    return re.sub(r"<[^>]*>|\{[^}]*\}", "<>", key)


def literal_keys(source: str) -> Iterator[str]:
    """The literal keys of the mappings that a module makes, variable parts as `<>`."""
    for node in ast.walk(ast.parse(source)):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.Dict):
            keys = list(node.keys)
        elif isinstance(node, ast.DictComp):
            keys = [node.key]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys = [node.slice]
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
            elif isinstance(key, ast.JoinedStr):
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "<>"
                    for part in key.values
                )
                yield text


def metric_keys() -> set[str]:
    """All keys of metrics.jsonl, of the tree and of the tables, from the source."""
    training = PACKAGE / "training"
    keys = set(literal_keys((training / "metrics.py").read_text(encoding="utf-8")))
    keys |= set(literal_keys((training / "watch_metrics.py").read_text(encoding="utf-8")))
    recorder = (training / "record.py").read_text(encoding="utf-8")
    keys |= {"step", "total_steps"} & set(literal_keys(recorder))
    trainer = (training / "trainer.py").read_text(encoding="utf-8")
    keys |= {f"timing/{part}" for part in re.findall(r'(?:measure|add)\("(\w+)"', trainer)}
    session = (training / "session.py").read_text(encoding="utf-8")
    keys |= {key for key in literal_keys(session) if key.startswith("timing/")}
    clock = (training / "clock.py").read_text(encoding="utf-8")
    keys |= {f"timing/{part}" for part in literal_keys(clock)}
    assert len(keys) > 60
    return keys


def explained(text: str) -> set[str]:
    """The code spans of a text and the dotted parts of each, variable parts as `<>`."""
    spans = {normal(span.replace("[]", "")) for span in quoted(text)}
    return spans | {part for span in spans for part in span.split(".")}


def test_every_metric_is_explained() -> None:
    assert sorted(metric_keys() - explained(ARCHITECTURE)) == []


def test_every_column_of_the_results_is_explained() -> None:
    columns = results_columns([("<name>", "<type>")])
    split_and_kind = re.compile(r"(train|valid)_(\w+_error)_(mean|count)$")
    patterns = {
        normal(re.sub(r"/(train|valid)_reward_mean$", "/<split>_reward_mean", column))
        for column in columns
    }
    patterns = {split_and_kind.sub("<>_<>_<>", pattern) for pattern in patterns}
    assert sorted(patterns - explained(section(ARCHITECTURE, "Metrics"))) == []


def test_no_flat_metric_is_explained_that_is_not_there() -> None:
    table = section(ARCHITECTURE, "Metrics").split("The tree in a")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    told = {normal(span) for row in rows for span in quoted(row)}
    assert len(told) > 35
    assert sorted(told - metric_keys()) == []


def test_every_column_of_samples_and_evaluations_is_named() -> None:
    from rft.runs.tables import EVALUATION_SCHEMA, SAMPLES_SCHEMA

    told = explained(section(ARCHITECTURE, "The run folder"))
    assert sorted({*SAMPLES_SCHEMA.names, *EVALUATION_SCHEMA.names} - told) == []


def test_files_and_methods_that_are_named_exist() -> None:
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = [span for span in quoted(ARCHITECTURE) if span.endswith(".py")]
    assert len(named) > 30
    ends = {name: name.removeprefix("rft/") for name in named if not name.startswith("tests/")}
    lost = [
        name for name, end in ends.items() if not any(f"/{f}".endswith(f"/{end}") for f in files)
    ]
    lost += [name for name in named if name not in ends and not (ROOT / name).is_file()]
    assert lost == []
    methods = re.findall(r"`([A-Z]\w+)\.(\w+)`", ARCHITECTURE)
    assert len(methods) > 15
    gone = [
        f"{owner}.{name}"
        for owner, name in methods
        if f"class {owner}" not in sources or not re.search(rf"def {name}\(", sources)
    ]
    assert gone == []


def test_the_reference_of_the_job_is_that_of_its_schema() -> None:
    assert job_reference.PAGE.read_text(encoding="utf-8") == job_reference.page()


def test_the_page_of_results_is_that_of_the_results(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "bench"
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    written = write_page(tmp_path).read_text(encoding="utf-8")
    assert (folder / "README.md").read_text(encoding="utf-8") == written
