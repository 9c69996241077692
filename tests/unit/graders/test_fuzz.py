"""Templates, formulas and grader documents under fuzzing: a value, or our located error, never another.

Every property sees 2,000 examples, the same in each run.
"""

import json
import math
import re
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rft.errors import GraderError, JobError, NotYetError
from rft.graders import (
    GraderDocument,
    GradingSettings,
    open_grader,
    problems_of,
    template_problems,
)
from rft.graders.fault import GradingFault
from rft.graders.formula import parse_formula
from rft.graders.template import field_problems, parse_template
from rft.job import parse_job

fuzz = settings(
    max_examples=2000,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
randoms = st.integers(0, 2**48).map(Random)
"""Sources of drawn rows and documents: much faster than strategies that build them."""

KEYS = ["answer", "a", "b", "größe", "two words", "dot.ted", "0", "", 'q"', "x}}y"]
DEEP = {"a": {"b": [0, {"two words": [None, {"a": "deep"}]}]}, "0": [[1.5], []], "x}}y": {"": 1}}
TEXTS = [
    "",
    "Paris",
    "it is PARIS",
    "{{ item.a }}",
    "\ud800",
    "\0",
    "1e4",
    "नमस्ते",
    " \n",
    "x" * 300,
]
ODD = [
    *(None, True, False, 0, 1, -1, 10**30, 0.5, 1e-300, 1e308, float("nan"), float("inf"), *TEXTS),
    *([], {}, [1, [2, "a"]], [None], {"a": 1}, {"a": [{"b": 2}]}, {"": ""}, DEEP, {"answer": DEEP}),
]
"""Values that a row, a completion or a document may hold."""


def drawn_item(random):
    return {random.choice(KEYS): random.choice(ODD) for _ in range(random.randrange(5))}


def drawn_sample(random):
    sample = {"output_text": random.choice(TEXTS)}
    for key in ("output_json", "output_tools", "choices"):
        if random.random() < 0.5:
            sample[key] = random.choice(ODD)
    return sample


def mutated(text, fragments, random):
    """The text with some of its places cut, repeated, or filled with fragments."""
    for _ in range(random.randrange(5)):
        at = random.randint(0, len(text))
        piece = random.choice([*fragments, chr(random.randrange(0x3000)), text[at : at + 5]])
        text = text[:at] + piece + text[at + random.randrange(4) :]
    return text


def check_located(problems, where):
    assert problems
    for problem in problems:
        assert problem.what and problem.where.startswith(where)


# Templates

TEMPLATES = [
    "{{ item.a }}",
    "<{{ item.answer }}|{{ sample.output_text }}>",
    '{{ item["two words"].b[0] }} {{ item.größe }}',
    "{{ sample.choices[0].message.content }}",
    '{"x": {{ sample.output_json.a[1] }}}',
    "",
]
BRACES = [
    "{{",
    "}}",
    "{",
    "}",
    "item",
    "sample",
    ".",
    "[0]",
    "[",
    "]",
    '["a"]',
    "['",
    " ",
    "\n",
    "-1",
]


@fuzz
@given(randoms)
def test_a_template_is_read_or_refused_and_rendered_or_a_fault(random):
    text = mutated(random.choice(TEMPLATES), BRACES, random)
    problems = field_problems(text, "grader.input")
    try:
        template = parse_template(text, "grader.input")
    except GraderError as error:
        refused = list(error.problems)
        assert refused == problems
        check_located(problems, "grader.input")
        return
    assert all("a sample has no" in problem.what for problem in problems)
    try:
        rendered = template.render(drawn_sample(random), drawn_item(random))
    except GradingFault as fault:
        rendered = f"{fault.flag} {fault.details}"
        assert rendered.startswith("invalid_variable_error {{ ")
    assert isinstance(rendered, str)
    if "{{" not in text:
        assert rendered == text


def drawn_path(item, random):
    """A path that leads somewhere in the item, most of the time."""
    value, path = item, []
    for _ in range(random.randint(1, 4)):
        steps = list(value if isinstance(value, dict) else range(len(value)))
        if not steps or random.random() < 0.1:
            steps = [*KEYS, 0, 1, 2] if path else KEYS
        path.append(random.choice(steps))
        try:
            value = value[path[-1]]
        except (LookupError, TypeError):
            return path
        if not isinstance(value, dict | list):
            return path
    return path


def spelled(path):
    """A path in the long form of a template."""
    quotes = ["'" if '"' in str(step) else '"' for step in path]
    steps = [
        f"[{step}]" if isinstance(step, int) else f"[{quote}{step}{quote}]"
        for step, quote in zip(path, quotes, strict=True)
    ]
    return "{{ item" + "".join(steps) + " }}"


@fuzz
@given(randoms)
def test_a_path_finds_what_python_finds(random):
    item = {**drawn_item(random), "a": random.choice(ODD), "b": DEEP}
    path = drawn_path(item, random)
    template = parse_template(spelled(path), "grader.input")
    expected = item
    for step in path:
        is_there = isinstance(expected, list if isinstance(step, int) else dict)
        if not is_there or (
            step not in expected if isinstance(step, str) else step >= len(expected)
        ):
            with pytest.raises(GradingFault) as caught:
                template.render({}, item)
            assert not caught.value.of_sample
            return
        expected = expected[step]
    as_json = json.dumps(expected, ensure_ascii=False)
    assert template.render({}, item) == (expected if isinstance(expected, str) else as_json)


# Formulas

REWARDS = {"a": 0.5, "b": 2.0, "c": -3.0}
FUNCTIONS = {
    "abs": math.fabs,
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "floor": lambda value: float(math.floor(value)),
    "log": math.log,
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "sqrt": math.sqrt,
}
LEAVES = ["a", "b", "c", "0", "1", "2.", ".5", "1e-9", "1E300", "007", "3.25", "12"]
NUMBER = re.compile(r"(?<![\w.])(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
SYMBOLS = [
    "+",
    "-",
    "*",
    "/",
    "^",
    "(",
    ")",
    ",",
    "a",
    "b",
    "min(",
    "sqrt(",
    "1",
    "1e9",
    ".",
    " ",
    "**",
]


def drawn_formula(random, depth=4):
    """A legal formula."""
    inner = (
        [drawn_formula(random, depth - 1) for _ in range(2)] if random.random() < depth / 5 else []
    )
    if not inner:
        return random.choice(LEAVES)
    first, second = inner
    kind = random.randrange(7)
    if kind < 3:
        return first + random.choice([" + ", "-", "*", " / ", "^"]) + second
    if kind == 3:
        return f"({first})"
    if kind == 4:
        return f"-{first}"
    function = random.choice(sorted(FUNCTIONS))
    return (
        f"{function}({first}, {second})" if function in ("min", "max") else f"{function}({first})"
    )


def python_value(text):
    """What Python makes of a formula; None where it has no finite number."""
    floats = NUMBER.sub(lambda found: repr(float(found[0])), text)
    try:
        value = eval(
            f"({floats.replace('^', '**')})", {"__builtins__": {}}, {**FUNCTIONS, **REWARDS}
        )
    except (ArithmeticError, ValueError, TypeError):  # TypeError: it went through a complex number
        return None
    return None if isinstance(value, complex) or not math.isfinite(value) else value


def check_value(text):
    formula, expected = parse_formula(text, REWARDS, "grader.calculate_output"), python_value(text)
    try:
        value = formula.value(REWARDS)
    except GradingFault as fault:
        flag, details = fault.flag, fault.details
        assert flag == "other_error"
        assert expected is None or "not a finite" in details  # Python let an infinity pass
        return False
    assert isinstance(value, float)
    assert value == expected
    return True


@fuzz
@given(randoms)
def test_a_formula_has_the_value_that_python_gives_it(random):
    check_value(drawn_formula(random))


@fuzz
@given(randoms)
def test_a_formula_is_read_or_refused_at_a_column(random):
    text = mutated(drawn_formula(random, depth=3), SYMBOLS, random)
    try:
        parse_formula(text, REWARDS, "grader.calculate_output")
    except GraderError as error:
        problems = error.problems
        check_located(problems, "grader.calculate_output")
        assert all(" at column " in problem.what and problem.remedy for problem in problems)
        return
    check_value(text)


# Documents

CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "ilike",
}
ALIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.a }}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1.0\n"}
REMOTE = {"type": "endpoint", "url": "https://example.com/grade", "headers": {"X-Key": "${KEY}"}}
JUDGE = {"type": "score_model", "name": "judge", "model": "m", "input": []}


def multi(formula, **parts):
    return {"type": "multi", "graders": parts, "calculate_output": formula}


OF_TEXTS = [CHECK, ALIKE, multi("0.5 * a + b", a=CHECK, b=ALIKE), multi("a / b", a=ALIKE, b=CHECK)]
DOCUMENTS = [*OF_TEXTS, CODE, REMOTE, multi("a ^ c", a=CHECK, c=CODE), multi("a", a=ALIKE, b=JUDGE)]
FIELDS = sorted({key for document in (*DOCUMENTS, JUDGE) for key in document})
WORDS = [*FIELDS, "range", "invalid_grade", "multi", "rouge_1", "bleu", "eq", "a + 1", "cosine"]


def places(value, path=()):
    """The paths of all that a document holds, itself included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def mutated_document(originals, random):
    """One of the documents with up to three changes."""
    document = deepcopy(random.choice(originals))
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        if not isinstance(document, dict):
            return document
        path = random.choice(list(places(document)))
        key, value = random.choice([*WORDS, *KEYS]), random.choice([*ODD, *DOCUMENTS, *WORDS])
        document = changed(document, path, key, deepcopy(value), random)
    return document


def changed(document, path, key, value, random):
    if not path:
        return value if random.random() < 0.2 else {**document, key: value}
    section = document
    for step in path[:-1]:
        section = section[step]
    last = path[-1]
    action = random.choice(["replace", "remove", "rename", "add", "spoil"])
    if action == "remove":
        del section[last]
    elif action == "rename":
        section[key] = section.pop(last)
    elif action == "add" and isinstance(section[last], dict):
        section[last][key] = value
    elif action == "spoil" and isinstance(section[last], str):
        section[last] = mutated(section[last], [*BRACES, *SYMBOLS], random)
    else:
        section[last] = value
    return document


def parsed(grader):
    """The grader of a job that has this document for it; None where it was refused as it should be."""
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    job = {"model": "m", "training_file": "t", "validation_file": "v", "method": method}
    try:
        text = json.dumps(job, allow_nan=False)
    except ValueError:  # NaN, which JSON has not
        return None
    try:
        return parse_job(text, name="job.json", folder=Path("/nowhere")).grader
    except (JobError, NotYetError) as error:
        problems = error.problems
        check_located([p for p in problems if not p.what.startswith("and ")], "job.json:1:")
        return None


@fuzz
@given(randoms)
def test_a_document_is_read_or_refused_at_its_place(random):
    document = parsed(mutated_document(DOCUMENTS, random))
    if document is None:
        return
    assert all(problem.where for problem in template_problems(document, [("row 1", {})]))
    assert documents.validate_json(document.model_dump_json()) == document


documents: TypeAdapter[GraderDocument] = TypeAdapter(GraderDocument)


@fuzz
@given(randoms)
def test_a_grader_of_texts_grades_whatever_it_gets(random):
    try:
        document = documents.validate_python(mutated_document(OF_TEXTS, random))
    except ValidationError:
        return
    kinds = {part.type for part in document.parts()}
    if problems_of(document, "grader", GradingSettings()) or not kinds <= {
        "string_check",
        "text_similarity",
        "multi",
    }:
        return
    sample, item = drawn_sample(random), drawn_item(random)
    with open_grader(document) as grader:
        for row in (item, {**item, "answer": "Paris", "a": "It is Paris"}):
            whole = grader.grade(sample, row)
            for grade in (whole, *whole.sub_grades.values()):
                assert grade.reward is None or math.isfinite(grade.reward)
                assert grade.reward is not None or whole.errors
