"""What can be told about the source of a python grader without running it."""

import ast
import os
import re
import site
import symtable
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rft.errors import Problem
from rft.graders.template import LATER_SAMPLE_VARIABLES

MAX_SOURCE_BYTES = 256_000
NAME = "grader.py"
"""The source's file name in tracebacks."""

PRODUCT_PACKAGES: Mapping[str, str] = {
    "ast_grep_py": "ast-grep-py",
    "deepdiff": "deepdiff",
    "jsonschema": "jsonschema",
    "nltk": "nltk",
    "numpy": "numpy",
    "pandas": "pandas",
    "pydantic": "pydantic",
    "rapidfuzz": "rapidfuzz",
    "rdkit": "rdkit",
    "rouge_score": "rouge-score",
    "scipy": "scipy",
    "skbio": "scikit-bio",
    "sklearn": "scikit-learn",
    "sqlparse": "sqlparse",
    "sympy": "sympy",
    "yaml": "pyyaml",
}
"""The packages of the product's graders: the name to import → the name to install."""
OTHER_PACKAGES: Mapping[str, str] = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "Levenshtein": "levenshtein",
}
PROVIDED = frozenset({"__main__", "rft_sandbox"})
"""What the sandbox itself has for a source to import."""
NUM_RETRIES = 20
IMPORT_FAILURES = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def source_problems(source: str, where: str) -> list[Problem]:
    """What keeps a source from being run: size, syntax, no `grade(sample, item)`, missing packages."""
    num_bytes = len(source.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_SOURCE_BYTES:
        remedy = f"at most {MAX_SOURCE_BYTES} bytes are run"
        return [Problem(f"the source has {num_bytes} bytes", where, remedy)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parsed(source)
            compile(source, NAME, "exec", dont_inherit=True)
            return [*grade_problems(source, tree, where), *import_problems(tree, where)]
    except SyntaxError as error:
        return [Problem(syntax_words(error, source), where, "mend the Python source")]
    except (ValueError, RecursionError, MemoryError, SystemError) as error:
        return [Problem(f"the source cannot be compiled: {error}", where, "mend the Python source")]


def parsed(source: str) -> ast.Module:
    """The tree of a source, once more where Python 3.11 has mixed up the depths of two that threads parse."""
    for _ in range(NUM_RETRIES):
        try:
            return ast.parse(source, NAME)
        except SystemError:
            continue
    return ast.parse(source, NAME)


def syntax_words(error: SyntaxError, source: str) -> str:
    """What is wrong, where in the source, and the line seen there."""
    if error.lineno is None:
        return f"the source cannot be compiled: {error.msg}"
    lines = re.split("\r\n|\r|\n", source)
    line = "".join(lines[error.lineno - 1 : error.lineno]).strip()
    return f"line {error.lineno}, column {error.offset}: {error.msg}: {line[:80]!r}"


def grade_problems(source: str, tree: ast.Module, where: str) -> list[Problem]:
    """What keeps `grade` from being called with (sample, item)."""
    if not defines_grade(source):
        what = "the source defines no function grade at its top level"
        return [Problem(what, where, "define `def grade(sample, item)` that returns a number")]
    problem = signature_problem(tree, where)
    return [problem] if problem else []


def defines_grade(source: str) -> bool:
    """Whether the module binds the name `grade`, by whatever statement."""
    table = symtable.symtable(source, NAME, "exec")
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


def import_problems(tree: ast.Module, where: str) -> list[Problem]:
    """The imports that would fail here, in the order of the source; each package is told once."""
    problems: dict[str, Problem] = {}
    for statement in sorted(unguarded_imports(tree), key=lambda statement: statement.lineno):
        place = f"line {statement.lineno}"
        if isinstance(statement, ast.ImportFrom) and statement.level:
            what = f"{place}: `{ast.unparse(statement)}`: the source is one file, without a package"
            problems.setdefault(what, Problem(what, where, "name the package, or paste the code"))
            continue
        for package in imported_packages(statement):
            if package not in problems and not is_installed(package):
                what = f"{place}: the package {package} is not installed"
                problems[package] = Problem(what, where, install_remedy(package))
    return list(problems.values())


def unguarded_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that stand in no `try` that catches their failure, and are not for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try | ast.TryStar) and catches_import_failures(node):
            waiting += [*node.handlers, *node.orelse, *node.finalbody]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in names_in(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def catches_import_failures(statement: ast.Try | ast.TryStar) -> bool:
    return any(
        handler.type is None or names_in(handler.type) & IMPORT_FAILURES
        for handler in statement.handlers
    )


def names_in(expression: ast.expr) -> set[str]:
    """The names an expression uses, those after a dot too."""
    nodes = list(ast.walk(expression))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def imported_packages(statement: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(statement, ast.ImportFrom):
        return [str(statement.module).partition(".")[0]]
    return [alias.name.partition(".")[0] for alias in statement.names]


def unreadable_problems(source: str, readable: Sequence[str], where: str) -> list[Problem]:
    """The installed packages that a source imports from outside the readable folders."""
    problems: dict[str, Problem] = {}
    for statement in unguarded_imports(parsed(source)):
        for package in imported_packages(statement):
            place = location(package)
            if place is None or any(Path(place).is_relative_to(folder) for folder in readable):
                continue
            what = (
                f"line {statement.lineno}: the package {package} lies in {place}, which the sandbox"
            )
            remedy = "install it into Python's own folder: pip install, without -e"
            problems.setdefault(package, Problem(f"{what} cannot read", where, remedy))
    return list(problems.values())


def location(package: str) -> str | None:
    """The file or folder of an installed package; None for those that need none or are missing."""
    if package in sys.stdlib_module_names or package in PROVIDED:
        return None
    spec = installed_spec(package)
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return os.path.realpath(places[0]) if places and places[0] else None


def is_installed(package: str) -> bool:
    """Whether a grading process can import it."""
    if package in sys.stdlib_module_names or package in PROVIDED:
        return True
    return installed_spec(package) is not None


def installed_spec(package: str) -> ModuleSpec | None:
    spec = PathFinder.find_spec(package, installed_folders())
    finders = [finder for finder in sys.meta_path if "editable" in finder.__module__]
    for finder in finders:
        spec = spec or finder.find_spec(package, None)
    return spec


def installed_folders() -> list[str]:
    """The module path of a grading process: without the current folder, PYTHONPATH and user folders."""
    own = [os.getcwd(), os.path.dirname(sys.argv[0]), site.getusersitepackages()]
    own += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [folder for folder in sys.path if folder and folder not in own]


def install_remedy(package: str) -> str:
    if package in PRODUCT_PACKAGES:
        return f'pip install {PRODUCT_PACKAGES[package]}, or "rft[product-graders]" for all of them'
    return f"pip install {OTHER_PACKAGES.get(package, package)}"


def source_warnings(source: str) -> list[str]:
    """Text that a source runs as code, and what it names that no sample has; none for one that cannot be
    compiled."""
    calls = [node for node in nodes_of(source) if isinstance(node, ast.Call) and runs_text(node)]
    unbuilt = [
        f"line {line}: {key}: no sample has one yet"
        for key in LATER_SAMPLE_VARIABLES
        for line in reading_lines(source, key)[:1]
    ]
    return unbuilt + [
        f"line {call.lineno}: {ast.unparse(call.func)}(…) runs text inside grade: code that the model "
        "wrote can return any reward it likes there; run it with rft_sandbox.run_code"
        for call in sorted(calls, key=lambda call: call.lineno)
    ]


def reading_lines(source: str, key: str) -> list[int]:
    """The lines at which a source names a key of a sample, in order; none for one that cannot be compiled."""
    constants = [node for node in nodes_of(source) if isinstance(node, ast.Constant)]
    return sorted(node.lineno for node in constants if node.value == key)


def nodes_of(source: str) -> list[ast.AST]:
    """All of a source's syntax tree; empty for one that cannot be compiled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(ast.walk(parsed(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def runs_text(call: ast.Call) -> bool:
    """Whether it is exec(…) or eval(…) of anything but a literal."""
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        name = function.attr if function.value.id in ("builtins", "__builtins__") else ""
    else:
        name = function.id if isinstance(function, ast.Name) else ""
    is_literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return name in ("exec", "eval") and not is_literal
