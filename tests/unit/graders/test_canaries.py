"""The answers whose worth is known: the hollow ones, and the right one wherever a job tells it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rft.data import load_examples
from rft.graders import GraderDocument, open_grader
from rft.graders.canaries import CANARY_KINDS, HOLLOW_KINDS, Canary, canaries_of, reference_answer
from rft.job import load_job
from rft.types import Example

CONFIGS = Path(__file__).parents[3] / "configs"
OUTPUT = "{{ sample.output_text }}"
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item): return 1.0"}


def document(raw: dict[str, Any]) -> GraderDocument:
    return TypeAdapter(GraderDocument).validate_python(raw)


def check(
    operation: str = "eq", reference: str = "{{ item.city }}", text: str = OUTPUT, name: str = "a"
) -> dict[str, Any]:
    return {
        "type": "string_check",
        "name": name,
        "operation": operation,
        "input": text,
        "reference": reference,
    }


def similar(reference: str = "{{ item.city }}", name: str = "b") -> dict[str, Any]:
    return {
        "type": "text_similarity",
        "name": name,
        "evaluation_metric": "bleu",
        "input": OUTPUT,
        "reference": reference,
    }


def multi(formula: str, **parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "name": "m", "graders": parts, "calculate_output": formula}


ITEM = {"city": "Lima", "country": "Peru", "number": 7, "nothing": None, "blank": " "}


@pytest.mark.parametrize(
    ("raw", "reference"),
    [
        (check("eq"), "Lima"),
        (similar(), "Lima"),
        (
            check("eq", "{{ item.city }} in {{ item.country }}: {{ item.number }}"),
            "Lima in Peru: 7",
        ),
        (check("like"), "Lima"),
        (check("ilike"), "Lima"),
        # not the answer: its opposite, a literal, a part of the output, of the prompt, of the sample
        (check("ne"), None),
        (check("neq"), None),
        (check("eq", "Lima"), None),
        (check("eq", text="Answer: {{ sample.output_text }}"), None),
        (check("eq", text="{{ sample.output_json.city }}"), None),
        (check("eq", text="{{ item.country }}"), None),
        (check("eq", "{{ item.messages[0].content }}"), None),
        (check("eq", "{{ item.city }} {{ sample.output_text }}"), None),
        # nothing there to read
        (check("eq", "{{ item.nothing }}"), None),
        (check("eq", "{{ item.blank }}"), None),
        (check("eq", "{{ item.missing }}"), None),
        (PYTHON, None),
        # of several parts the first that tells it, equality and similarity before containment
        (multi("a + b", a=check("eq", "{{ item.country }}"), b=similar()), "Peru"),
        (multi("a + b", a=check("like", "{{ item.country }}"), b=similar()), "Lima"),
        (multi("a + b", a=check("eq", "{{ item.missing }}"), b=similar()), "Lima"),
        (multi("c", c=PYTHON, b=similar()), "Lima"),
        # a part that lowers the result is a penalty
        (multi("1 - a", a=check("eq")), None),
        (multi("b * (1 - a)", a=check("eq", "{{ item.country }}"), b=similar()), "Lima"),
        (multi("1 - a", a=check("ilike")), None),
        (multi("b - a", a=check("ilike", "capital"), b=check("like", name="b")), "Lima"),
        # a formula that has no value in the middle still tells it
        (multi("log(a - 1)", a=check("eq")), "Lima"),
    ],
)
def test_the_reference_that_a_grader_tells(raw: dict[str, Any], reference: str | None) -> None:
    item = {**ITEM, "messages": [{"role": "user", "content": "Where?"}]}
    assert reference_answer(document(raw), item) == reference


@pytest.mark.parametrize(
    ("item", "reference"),
    [
        ({"answer": "42"}, "42"),
        ({"answer": 42}, "42"),
        ({"solution": 0.5}, "0.5"),
        ({"label": "spam", "reference_answer": "ham"}, "ham"),
        ({"ground_truth": "a", "answer": "b"}, "a"),
        ({"answer": "", "target": "c"}, "c"),
        ({"answer": True}, None),
        ({"answer": None, "expected": "d"}, "d"),
        ({"answer": ["e"]}, None),
        ({"sum": 42}, None),
        ({}, None),
    ],
)
def test_the_reference_that_a_row_keeps(item: dict[str, Any], reference: str | None) -> None:
    assert reference_answer(document(PYTHON), item) == reference


def test_a_row_is_asked_before_what_must_be_contained() -> None:
    item = {"city": "Lima", "answer": "The capital is Lima."}
    assert reference_answer(document(check("like")), item) == "The capital is Lima."
    assert reference_answer(document(check("eq")), item) == "Lima"


def test_the_canaries_of_a_row() -> None:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And then?"},
    )
    example = Example(0, messages, {"city": "Lima"})
    hollow = [Canary("empty", ""), Canary("punctuation", ":"), Canary("echo", "And then?")]
    assert canaries_of(document(PYTHON), example) == hollow
    found = canaries_of(document(check()), example)
    assert found == [*hollow, Canary("reference", "Lima")]
    assert tuple(canary.kind for canary in found) == CANARY_KINDS == (*HOLLOW_KINDS, "reference")
    assert found[3].sample == {
        "output_text": "Lima",
        "output_tools": [],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Lima"},
                "finish_reason": "stop",
            }
        ],
    }


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("capitals", {"empty": 0.1, "punctuation": 0.1, "reference": 1.0}),
        ("arithmetic", {"empty": 0.0, "punctuation": 0.0, "echo": 0.0}),
        ("smoke", {"empty": 1.0, "punctuation": 47 / 48, "echo": 34 / 48}),
    ],
)
def test_what_canaries_earn_in_the_examples(name: str, rewards: dict[str, float]) -> None:
    job = load_job(CONFIGS / name / "job.yaml")
    rows = load_examples(job.training_file, job.engine.data, field="training_file", minimum=1)
    example = next(iter(rows))
    with open_grader(job.grader, job.grading_settings) as grader:
        found = {
            canary.kind: grader.grade(canary.sample, example.item).reward
            for canary in canaries_of(job.grader, example)
        }
    assert {kind: found[kind] for kind in rewards} == pytest.approx(rewards)
    assert ("reference" in found) == ("reference" in rewards)
