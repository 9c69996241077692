"""What of a python grader's source monty cannot run, found by asking monty itself.

Asked are the syntax, the imports, the builtins by name, what is read of an imported module or of a
builtin type, and at last the run of the source without a sample. A method that monty's values lack is
seen only when `grade` is called.
"""

import ast
import builtins
from collections.abc import Iterator
from typing import Any, NamedTuple

from rft.errors import Problem
from rft.graders.monty import open_pool, open_session
from rft.graders.python_source import unguarded_imports
from rft.graders.sandbox import Limits

LIMITS = Limits(timeout_seconds=3, memory_mb=256)
MAX_SYNTAX_PROBLEMS = 20
MAX_WORDS = 200
UNSUPPORTED = "The monty syntax parser does not yet support"
NAMED = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ExceptHandler,
    ast.MatchAs,
    ast.MatchStar,
)
"""The nodes that bind their `name`."""
REMEDY = (
    "write it without, or set engine.grading.python.sandbox to kernel (Linux), or to unsafe-local, "
    "which confines nothing"
)


class Need(NamedTuple):
    """Something that a source uses and that monty may lack."""

    line: int
    name: str
    code: str
    """A program that fails where monty lacks it."""
    fault: str
    """The exception it fails with then."""


class Fault(NamedTuple):
    """How a program failed."""

    text: str
    line: int
    """0 where there is none."""
    is_of_parser: bool


def monty_source_problems(source: str, where: str) -> list[Problem]:
    """All that is found; none for a source that Python itself cannot read."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    with open_pool(num_processes=1) as pool:
        found = missing(pool, tree)
        found |= program_faults(pool, source, tree, runs=not found)
    return [
        Problem(f"line {line}: {what}" if line else what, where, REMEDY)
        for what, line in sorted(found.items(), key=lambda fault: fault[1])
    ]


def program_faults(pool: Any, source: str, tree: ast.Module, *, runs: bool) -> dict[str, int]:
    """What monty's parser refuses; if nothing, what the source raises before any sample.

    Each with its first line. The parser tells one fault at a time: the statement that has it is
    blanked for the next. What is raised is told only where the source should run.
    """
    lines = source.split("\n")
    found: dict[str, int] = {}
    for _ in range(MAX_SYNTAX_PROBLEMS):
        with open_session(pool, LIMITS) as session:
            fault = fault_of(session, "\n".join([*lines, "None"]))
        if fault is not None and not fault.is_of_parser and runs and not found:
            return {run_words(fault): fault.line}
        if fault is None or not fault.is_of_parser:
            return found
        what = fault.text.removeprefix("NotImplementedError: ")
        found.setdefault(what.replace(UNSUPPORTED, "monty does not support"), fault.line)
        if not blank_statement(lines, tree, fault.line):
            return found
    return found


def run_words(fault: Fault) -> str:
    """What went wrong when the source ran without a sample."""
    if fault.text.startswith("TimeoutError") and not fault.line:
        seconds = f"{LIMITS.timeout_seconds:g} s"
        return f"it takes more than {seconds} before any sample, and monty runs it for every sample"
    return f"it fails in monty: {fault.text}"


def blank_statement(lines: list[str], tree: ast.Module, line: int) -> bool:
    """Empties the lines of the outermost statement at a line; False when there is none."""
    for statement in tree.body:
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
        end = statement.end_lineno or first
        if first <= line <= end:
            lines[first - 1 : end] = [""] * (end - first + 1)
            return True
    return False


def missing(pool: Any, tree: ast.Module) -> dict[str, int]:
    """What monty lacks of all that a source names, in words, and the first line of each."""
    found: dict[str, int] = {}
    packages: list[str] = []
    with open_session(pool, LIMITS) as session:
        for need in needs(tree):
            if any(
                need.name == package or need.name.startswith(f"{package}.") for package in packages
            ):
                continue
            fault = fault_of(session, f"{need.code}\nNone")
            if fault is not None and fault.text.startswith(need.fault):
                found.setdefault(f"monty has no {need.name}", need.line)
                if need.fault == "ModuleNotFoundError":
                    packages.append(need.name)
    return found


def needs(tree: ast.Module) -> Iterator[Need]:
    """All that can be asked about: imports in their order, then what else is evaluated."""
    imports = sorted(unguarded_imports(tree), key=lambda statement: statement.lineno)
    for statement in imports:
        yield from import_needs(statement)
    nodes = list(evaluated(tree))
    modules = dict(module_names(imports))
    bound = bound_names(nodes)
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Name) and is_builtin(node, bound):
            yield Need(node.lineno, node.id, node.id, "NameError")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if is_builtin(node.value, bound):
                yield attribute_need(node, node.value, "", id(node) in called)
            elif node.value.id in modules.keys() - bound:
                yield attribute_need(node, node.value, modules[node.value.id], id(node) in called)


def import_needs(statement: ast.Import | ast.ImportFrom) -> Iterator[Need]:
    """The module of a statement, then each name it takes from it."""
    line = statement.lineno
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield Need(line, alias.name, f"import {alias.name}", "ModuleNotFoundError")
    elif statement.module not in (None, "__future__") and not statement.level:
        module = statement.module
        yield Need(line, module, f"import {module}", "ModuleNotFoundError")
        for alias in statement.names:
            code = f"from {module} import {alias.name}"
            yield Need(line, f"{module}.{alias.name}", code, "ImportError")


def attribute_need(node: ast.Attribute, root: ast.Name, code: str, is_called: bool) -> Need:
    """`root.name`; where it is called it is asked so: monty can call some methods that it cannot give."""
    dotted = f"{root.id}.{node.attr}"
    call = "()" if is_called else ""
    return Need(node.lineno, dotted, f"{code}\n{dotted}{call}", "AttributeError")


def module_names(imports: list[ast.Import | ast.ImportFrom]) -> Iterator[tuple[str, str]]:
    """The names that stand for modules, each with a statement that binds it."""
    for statement in imports:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, ast.unparse(ast.Import([alias]))


def bound_names(nodes: list[ast.AST]) -> set[str]:
    """The names that a source gives a meaning of its own, other than by `import module`."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, NAMED) and node.name:
            names.add(node.name)
    return names


def is_builtin(name: ast.Name, bound: set[str]) -> bool:
    is_read = isinstance(name.ctx, ast.Load)
    return is_read and hasattr(builtins, name.id) and name.id not in bound


def evaluated(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but annotations, which monty does not evaluate."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        skipped = [getattr(node, field, None) for field in ("annotation", "returns")]
        waiting += [child for child in ast.iter_child_nodes(node) if child not in skipped]


def fault_of(session: Any, program: str) -> Fault | None:
    """How a program fails; None when it runs, or when it is stopped by a limit."""
    import pydantic_monty

    try:
        session.feed_run(program, print_callback=lambda _stream, _text: None)
    except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
        text = error.display("type-msg").partition("\n")[0][:MAX_WORDS]
        frames = error.traceback()
        if not frames:
            return Fault(text, 0, is_of_parser=isinstance(error, pydantic_monty.MontySyntaxError))
        return Fault(text, frames[0].line, is_of_parser=frames[0].function_name is None)
    except pydantic_monty.MontyError:
        return None
    return None
