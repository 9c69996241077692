"""python: the user's `grade(sample, item)`, run in a process of its own for every sample.

The source runs once when its process starts; each sample is graded in a fork of that process, so
nothing a sample leaves behind reaches the next. What goes wrong becomes

    grade raises, ends its process, or returns no finite number   the sample's fault: the minimum
    timeout, memory limit, source that fails before any sample    reward None
        both under python_grader_runtime_error
    the sandbox itself fails                                      reward None
        under python_grader_server_error
"""

import ast
import json
import symtable
import warnings
from typing import Literal

from pydantic import Field

from rft.errors import GraderError, Problem
from rft.graders.fault import GradingFault
from rft.graders.grader import Document, Grader, GradingSettings, make_grade, shape_by_threshold
from rft.graders.sandbox import Limits, Sandbox
from rft.types import Grade, Item, Sample

MAX_SOURCE_BYTES = 256_000


class Python(Document):
    """Grades by a function of the user's."""

    type: Literal["python"]
    name: str = Field(default="python_grader", min_length=1)
    source: str
    """Python that defines `grade(sample, item)`, which returns a finite number."""
    image_tag: str | None = None
    """Names the product's set of packages; here the source finds those installed beside rft."""
    pass_threshold: float | None = None
    """Shapes the reward only with `engine.grading.pass_threshold_shapes_reward`."""

    def problems(self, where: str) -> list[Problem]:
        problem = source_problem(self.source, f"{where}.source")
        return [problem] if problem else []

    def open(self, settings: GradingSettings) -> Grader:
        problem = source_problem(self.source, f"{self.name}.source")
        if problem:
            raise GraderError(problem)
        return PythonGrader(self, settings)


class PythonGrader(Grader):
    """Hands samples to a sandbox; as many processes as calls at the same time."""

    def __init__(self, document: Python, settings: GradingSettings):
        self._document = document
        self._settings = settings
        limits = Limits(settings.timeout_seconds, settings.memory_mb)
        self._sandbox = Sandbox(document.source, limits)

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def type(self) -> str:
        return self._document.type

    def grade(self, sample: Sample, item: Item) -> Grade:
        return make_grade(self._document, self._settings, lambda: self._reward(sample, item))

    def close(self) -> None:
        self._sandbox.close()

    def _reward(self, sample: Sample, item: Item) -> float:
        request = json.dumps({"sample": sample, "item": item}, default=str).encode()
        outcome = self._sandbox.run(request)
        if outcome.kind == "reward":
            return shape_by_threshold(outcome.reward, self._document.pass_threshold, self._settings)
        if outcome.kind == "sandbox":
            raise GradingFault("python_grader_server_error", outcome.details, of_sample=False)
        of_sample = outcome.kind == "fault"
        raise GradingFault("python_grader_runtime_error", outcome.details, of_sample=of_sample)


def source_problem(source: str, where: str) -> Problem | None:
    """What keeps a source from being run: size, syntax, or no `grade(sample, item)`."""
    num_bytes = len(source.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_SOURCE_BYTES:
        remedy = f"at most {MAX_SOURCE_BYTES} bytes are run"
        return Problem(f"the source has {num_bytes} bytes", where, remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, "grader.py")
            compile(source, "grader.py", "exec", dont_inherit=True)
            binds_grade = defines_grade(source)
    except SyntaxError as error:
        return Problem(syntax_words(error, source), where, "mend the Python source")
    except (ValueError, RecursionError, MemoryError) as error:
        return Problem(f"the source cannot be compiled: {error}", where, "mend the Python source")
    if not binds_grade:
        what = "the source defines no function grade at its top level"
        return Problem(what, where, "define `def grade(sample, item)` that returns a number")
    return signature_problem(tree, where)


def syntax_words(error: SyntaxError, source: str) -> str:
    """What is wrong, where in the source, and the line seen there."""
    if error.lineno is None:
        return f"the source cannot be compiled: {error.msg}"
    line = "".join(source.split("\n")[error.lineno - 1 : error.lineno]).strip()
    return f"line {error.lineno}, column {error.offset}: {error.msg}: {line[:80]!r}"


def defines_grade(source: str) -> bool:
    """Whether the module binds the name `grade`, by whatever statement."""
    table = symtable.symtable(source, "grader.py", "exec")
    if "grade" not in table.get_identifiers():
        return False
    symbol = table.lookup("grade")
    return symbol.is_assigned() or symbol.is_imported()


def signature_problem(tree: ast.Module, where: str) -> Problem | None:
    """A `def grade` that cannot be called as grade(sample, item)."""
    definitions = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        and statement.name == "grade"
    ]
    if not definitions:
        return None
    function = definitions[-1]
    place = f"line {function.lineno}"
    if isinstance(function, ast.AsyncFunctionDef):
        what = f"{place}: grade is an async function"
        return Problem(what, where, "define it without async")
    arguments = function.args
    num_positional = len(arguments.posonlyargs) + len(arguments.args)
    num_required = num_positional - len(arguments.defaults)
    required_keywords = any(default is None for default in arguments.kw_defaults)
    takes_two = num_required <= 2 and (num_positional >= 2 or arguments.vararg is not None)
    if takes_two and not required_keywords:
        return None
    what = f"{place}: grade({ast.unparse(arguments)}) cannot be called with (sample, item)"
    return Problem(what, where, "define `def grade(sample, item)`")
