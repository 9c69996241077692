"""Every worked example loads, its data too, and the data are what their README says."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rft.data import load_examples
from rft.graders import GradingSettings, open_grader
from rft.job import Job, load_job
from rft.types import Item

CONFIGS = Path(__file__).parents[2] / "configs"
JOBS = sorted(path.parent.name for path in CONFIGS.glob("*/job.yaml"))


def job_of(name: str) -> Job:
    return load_job(CONFIGS / name / "job.yaml")


def rows_of(name: str, file: str) -> list[dict[str, Any]]:
    lines = (CONFIGS / name / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_are_configs() -> None:
    assert {"arithmetic", "capitals", "gsm8k", "smoke"} <= set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_it_loads_and_is_explained(name: str) -> None:
    assert job_of(name).suffix == name.replace("_", "-")
    readme = (CONFIGS / name / "README.md").read_text(encoding="utf-8")
    assert f"rft train configs/{name}/job.yaml" in readme


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("field", ["training_file", "validation_file"])
def test_its_data_load(name: str, field: str) -> None:
    job = job_of(name)
    source = getattr(job, field)
    if source.startswith("hf://"):
        pytest.skip("lies on the hub")
    examples = load_examples(source, job.engine.data, field=field, minimum=1)
    assert len(examples) == len(Path(source).read_text(encoding="utf-8").splitlines())


def test_capitals_are_the_split_of_their_list() -> None:
    with (CONFIGS / "capitals" / "countries.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(row["country"], row["capital"]) for row in csv.DictReader(file)]
    countries = [country for country, _ in pairs]
    assert len(pairs) >= 160
    assert countries == sorted(set(countries))

    def row(country: str, capital: str) -> dict[str, Any]:
        question = f"What is the capital of {country}? Reply with only the name of the city."
        messages = [{"role": "user", "content": question}]
        return {"messages": messages, "country": country, "capital": capital}

    rows = [row(*pair) for pair in pairs]
    assert rows_of("capitals", "valid.jsonl") == rows[3::4]
    assert rows_of("capitals", "train.jsonl") == [
        row for index, row in enumerate(rows) if index % 4 != 3
    ]


def test_sums_are_right_and_apart() -> None:
    train, valid = (rows_of("arithmetic", file) for file in ("train.jsonl", "valid.jsonl"))
    assert (len(train), len(valid)) == (200, 50)
    assert len({(row["a"], row["b"]) for row in train + valid}) == 250
    for row in train + valid:
        assert 1 <= row["a"] <= 49 and 1 <= row["b"] <= 49 and row["sum"] == row["a"] + row["b"]
        question = f"What is {row['a']} + {row['b']}? Reply with only the number."
        assert row["messages"] == [{"role": "user", "content": question}]


def test_security_reviews_lean_on_the_policy_and_no_label_prevails() -> None:
    policy = (CONFIGS / "security_review" / "policy.md").read_text(encoding="utf-8")
    sentences = re.findall(r"[A-Z](?:[^.]|\.\d)*\.", re.sub(r"\*\*[^*]*\*\*|\s+", " ", policy))
    prompts = []
    schema = json.loads(str(job_of("security_review").completion_schema))
    for file, num_each in (("train.jsonl", 24), ("valid.jsonl", 11)):
        rows = rows_of("security_review", file)
        shares = {"yes": num_each, "no": num_each, "needs review": num_each}
        assert Counter(row["compliant"] for row in rows) == shares
        for row in rows:
            answer = {"compliant": row["compliant"], "explanation": row["explanation"]}
            jsonschema.validate(answer, schema)
        if file == "train.jsonl":
            turns = ["yes", "no", "needs review"] * num_each
            assert [row["compliant"] for row in rows] == turns
        prompts += [row["messages"][1]["content"] for row in rows]
    assert not job_of("security_review").engine.data.shuffle
    assert len(set(prompts)) == 105
    for prompt in prompts:
        assert any(sentence in prompt for sentence in sentences), prompt


def test_calls_are_of_a_listed_tool_with_values_from_the_request() -> None:
    train, valid = (rows_of("tools", file) for file in ("train.jsonl", "valid.jsonl"))
    assert (len(train), len(valid)) == (104, 40)
    calls = [json.dumps([row["function"], row["arguments"]]) for row in train + valid]
    assert len(set(calls)) == len({row["messages"][0]["content"] for row in train + valid}) == 144
    for row in train + valid:
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        assert len(tools) == len(row["tools"]) in (2, 3)
        assert list(row["arguments"]) == list(tools[row["function"]]["properties"])
        *_, request = row["messages"][0]["content"].splitlines()
        assert all(str(value) in request for value in row["arguments"].values())


GSM8K = {"question": "q", "answer": "It is 1,000 + 234 = <<1000+234=1234>>1,234.\n#### 1,234"}


@pytest.mark.parametrize(
    ("name", "item", "text", "reward"),
    [
        ("arithmetic", {"sum": 42}, "42", 1.0),
        ("arithmetic", {"sum": 42}, " 42\n", 1.0),
        ("arithmetic", {"sum": 42}, "17 + 25 = 42", 0.5),
        ("arithmetic", {"sum": 42}, "142", 0.0),
        ("arithmetic", {"sum": 42}, "", 0.0),
        ("capitals", {"capital": "Lima"}, "Lima", 1.0),
        ("capitals", {"capital": "Lima"}, "Oslo", 0.1),
        ("capitals", {"capital": "Lima"}, "Lima.", 0.4 * 8 / 9 + 0.1),
        ("capitals", {"capital": "Lima"}, "The capital is Lima", 0.4 * 8 / 23),
        ("smoke", {}, "", 1.0),
        ("smoke", {}, "x" * 12, 0.75),
        ("smoke", {}, "x" * 99, 0.0),
        ("gsm8k", GSM8K, "1000 + 234\n#### 1234", 1.0),
        ("gsm8k", GSM8K, "#### $1,234.00", 1.0),
        ("gsm8k", GSM8K, "#### 5, no: #### 1234", 1.0),
        ("gsm8k", GSM8K, "1234", 0.0),
        ("gsm8k", GSM8K, "####", 0.0),
        ("gsm8k", GSM8K, "#### 12345", 0.0),
    ],
)
def test_its_grader_rewards_as_told(name: str, item: Item, text: str, reward: float) -> None:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    sample = {"output_text": text, "output_tools": [], "choices": choices}
    with open_grader(job_of(name).grader, GradingSettings()) as grader:
        grade = grader.grade(sample, item)
    assert grade.errors == {}
    assert grade.reward == pytest.approx(reward, abs=1e-12)
