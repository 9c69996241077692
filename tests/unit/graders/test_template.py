import pytest

from rft.errors import GraderError
from rft.graders.fault import GradingFault
from rft.graders.template import field_problems, is_of_answer, parse_template

ITEM = {
    "answer": "Paris",
    "n": 3,
    "ratio": 0.5,
    "flag": True,
    "nothing": None,
    "städte": ["Köln", "Łódź"],
    "a": {
        "b": [{"c": "deep"}],
        "two words": "spaced",
        "it's": "quoted",
        "x}}y": "braces",
        "dot.ted": 20,
    },
    "my-key": "hyphen",
    "dot.ted": 10,
    "größe": "3.50",
    "numbers": [1.0, 1e-9, 1e22, -0.0],
    "lists": [[1], [2]],
    "empty": "",
    "0": "zero",
    "quote": "{{ item.answer }}",
}
SAMPLE = {
    "output_text": "Rome",
    "output_tools": [],
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Rome"}}],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain } }} { text", "plain } }} { text"),
        ("{{item.answer}}", "Paris"),
        ("{{  item.answer\n}}!", "Paris!"),
        ("<{{ item.answer }}|{{ sample.output_text }}>", "<Paris|Rome>"),
        ("{{ item.a.b[0].c }}", "deep"),
        ('{{ item.a["b"][0]["c"] }}', "deep"),
        ('{{ item["a"]["two words"] }}', "spaced"),
        ("{{ item['my-key'] }}{{ item.my-key }}", "hyphenhyphen"),
        ('{{ item.a["it\'s"] }}', "quoted"),
        ('{{ item.a["x}}y"] }}', "braces"),
        ("{{ item.n }} {{ item.ratio }} {{ item.flag }} {{ item.nothing }}", "3 0.5 true null"),
        ("{{ item.städte }}", '["Köln", "Łódź"]'),
        ("{{ item.a.b }}", '[{"c": "deep"}]'),
        ("{{ sample.choices[0].message.content }}", "Rome"),
        ("{{ sample.output_tools }}", "[]"),
        ("{{ item.quote }}", "{{ item.answer }}"),
        ('{"a": {{ item.n }}}', '{"a": 3}'),
        ('{"a":{{{item.n}}}}', '{"a":{3}}'),
        ('{{ item["dot.ted"] }}{{ item.a["dot.ted"] }}', "1020"),
        ("{{ item.größe }}", "3.50"),
        ("{{ item.a.b[0] }}", '{"c": "deep"}'),
        ("{{ item.numbers }}", "[1.0, 1e-09, 1e+22, -0.0]"),
        ("{{ item.empty }}|{{ item.lists[1][0] }}", "|2"),
        ("{{ item.0 }}", "zero"),
    ],
)
def test_render(text, expected):
    assert parse_template(text, "grader.input").render(SAMPLE, ITEM) == expected


@pytest.mark.parametrize(
    ("text", "details", "of_sample"),
    [
        (
            "{{ item.anser }}",
            "{{ item.anser }}: item has no 'anser', did you mean 'answer'?",
            False,
        ),
        ("{{ item.a.b[7] }}", "{{ item.a.b[7] }}: item.a.b is a list of 1, which has no 7", False),
        ("{{ item.a.b.c }}", "{{ item.a.b.c }}: item.a.b is a list of 1, which has no 'c'", False),
        ("{{ item.n.x }}", "{{ item.n.x }}: item.n is a number, which has no 'x'", False),
        (
            "{{ item.answer[0] }}",
            "{{ item.answer[0] }}: item.answer is text, which has no 0",
            False,
        ),
        (
            "{{ sample.output_tools[0].function.name }}",
            "{{ sample.output_tools[0].function.name }}: "
            "sample.output_tools is a list of 0, which has no 0",
            True,
        ),
        ("{{ sample.output_json.x }}", "{{ sample.output_json.x }}: this sample has no", True),
        ("{{ item.dot.ted }}", "{{ item.dot.ted }}: item has no 'dot'", False),
        ("{{ item.nothing.x }}", "{{ item.nothing.x }}: item.nothing is null, which", False),
        ("{{ item.flag[0] }}", "{{ item.flag[0] }}: item.flag is true or false, which", False),
        ("{{ item.a[0] }}", "{{ item.a[0] }}: item.a has no 0", False),
        (
            '{{ item.a["two words"].b[0][1].x }}',
            "{{ item.a[\"two words\"].b[0][1].x }}: item.a['two words'] is text, which has no 'b'",
            False,
        ),
        (
            "{{ item.lists[1][0].x }}",
            "{{ item.lists[1][0].x }}: item.lists[1][0] is a number",
            False,
        ),
    ],
)
def test_missing_variable(text, details, of_sample):
    with pytest.raises(GradingFault) as caught:
        parse_template(text, "grader.input").render(SAMPLE, ITEM)
    assert caught.value.flag == "invalid_variable_error"
    assert caught.value.details.startswith(details)
    assert caught.value.of_sample is of_sample


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("{{ items.x }}", "`{{ items.x }}` is not a template expression"),
        ("{{ item.x | upper }}", "`{{ item.x | upper }}` is not a template expression"),
        ("{{ item }}", "`{{ item }}` is not a template expression"),
        ("{{ item[0] }}", "`{{ item[0] }}` is not a template expression"),
        ("{{ item.x[-1] }}", "`{{ item.x[-1] }}` is not a template expression"),
        ("{{ item..x }}", "`{{ item..x }}` is not a template expression"),
        ("{{}}", "`{{}}` is not a template expression"),
        ("{{ 1 + 1 }}", "`{{ 1 + 1 }}` is not a template expression"),
        ("{{ item.x", "`{{ item.x` without `}}` is not a template expression"),
        ("{{ item.x {{ item.y }}", "`{{ item.x` without `}}` is not a template expression"),
    ],
)
def test_malformed(text, seen):
    with pytest.raises(GraderError) as caught:
        parse_template(text, "grader.input")
    (problem,) = caught.value.problems
    assert problem.what == seen
    assert problem.where == "grader.input"
    assert "{{ item.field }}" in problem.remedy


def test_all_malformed_expressions_are_told():
    with pytest.raises(GraderError) as caught:
        parse_template("{{ a }} {{ item.ok }} {{ b }}", "grader.input")
    assert [problem.what[:9] for problem in caught.value.problems] == ["`{{ a }}`", "`{{ b }}`"]


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        (
            "{{ sample.output_txt }}",
            "`{{ sample.output_txt }}`: a sample has no 'output_txt'",
            "use one of sample.output_text, sample.output_json, sample.output_tools, "
            "sample.choices, did you mean 'output_text'?",
        ),
        (
            "{{ sample.output_audio.transcript }}",
            "`{{ sample.output_audio.transcript }}`: a sample has no 'output_audio' yet",
            "use one of sample.output_text, sample.output_json, sample.output_tools, sample.choices",
        ),
    ],
)
def test_sample_variables_that_cannot_be(text, what, remedy):
    (problem,) = field_problems(text, "grader.input")
    assert (problem.what, problem.where) == (what, "grader.input")
    assert problem.remedy.startswith(remedy)


def test_field_without_problems():
    assert field_problems("{{ item.any }} {{ sample.choices[0] }}", "grader.input") == []


@pytest.mark.parametrize(
    ("text", "details"),
    [
        ("{{ sample.output_tools[0].function.name }}", "output_tools: it is cut off"),
        ("{{ sample.output_tools }}", "output_tools: it is cut off"),
        ("{{ item.answer }} {{ sample.output_json }}", "output_json: not valid JSON"),
    ],
)
def test_what_could_not_be_read_of_a_sample_is_its_own_fault(text, details):
    errors = {"output_tools": "it is cut off", "output_json": "not valid JSON"}
    with pytest.raises(GradingFault) as raised:
        parse_template(text, "x").render(SAMPLE | {"parse_errors": errors}, ITEM)
    assert (raised.value.flag, raised.value.details) == ("sample_parse_error", details)
    assert raised.value.of_sample and is_of_answer(raised.value.flag, raised.value.details)


def test_a_template_that_reads_something_else_is_filled_in():
    sample = SAMPLE | {"parse_errors": {"output_tools": "it is cut off"}}
    assert (
        parse_template("{{ sample.output_text }}", "x").render(sample, ITEM)
        == (SAMPLE["output_text"])
    )


@pytest.mark.parametrize(
    ("flag", "details", "expected"),
    [
        ("sample_parse_error", "", True),
        ("invalid_variable_error", "{{ sample.output_tools[0] }}: …", True),
        ("invalid_variable_error", "{{ item.answer }}: …", False),
        ("other_error", "{{ sample.output_tools[0] }}: …", False),
    ],
)
def test_errors_that_say_what_an_answer_is_not(flag, details, expected):
    assert is_of_answer(flag, details) == expected
