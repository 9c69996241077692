"""Graders: from a sample and its item to a grade."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from rft.errors import Problem
from rft.graders.endpoint import Endpoint
from rft.graders.grader import Grader, GradingSettings
from rft.graders.label_model import LabelModel
from rft.graders.model_grader import LOCAL, ModelGrader
from rft.graders.multi import Multi
from rft.graders.python import Python
from rft.graders.python_source import reading_lines
from rft.graders.score_model import ScoreModel
from rft.graders.string_check import StringCheck
from rft.graders.template import MissingVariable, Template, Variable
from rft.graders.text_similarity import TextSimilarity
from rft.graders.tiers import Tier, best_tier
from rft.types import Grade, Item

__all__ = [
    "Endpoint",
    "Grader",
    "GraderDocument",
    "GradingSettings",
    "Multi",
    "Python",
    "StringCheck",
    "TextSimilarity",
    "Tier",
    "best_tier",
    "grader_parts",
    "grader_warnings",
    "local_judges",
    "open_grader",
    "output_json_problems",
    "output_json_warnings",
    "output_tools_warnings",
    "passes",
    "problems_of",
    "template_problems",
]

GraderDocument = Annotated[
    StringCheck | TextSimilarity | Python | Endpoint | ScoreModel | LabelModel | Multi,
    Field(discriminator="type"),
]
"""A grader as the job document has it."""

MAX_ROWS_TOLD = 3


def open_grader(document: GraderDocument, settings: GradingSettings = GradingSettings()) -> Grader:
    """The grader at work; its processes start with the first sample.

    Raises GraderError when the document cannot be used, MachineError when this machine lacks what it
    needs.
    """
    return document.open(settings)


def problems_of(
    document: GraderDocument, where: str = "grader", settings: GradingSettings | None = None
) -> list[Problem]:
    """The faults of a document that can be seen without a sample, all at once.

    Those that depend on how graders run are told where `settings` are given.
    """
    problems = document.problems(where)
    if isinstance(document, LabelModel):
        what = "a label_model stands only in a multi, whose formula makes its label a reward"
        problems.append(Problem(what, f"{where}.type", "make it a part of a multi"))
    return problems if settings is None else problems + document.settings_problems(where, settings)


def grader_warnings(document: GraderDocument, items: Sequence[Item] = ()) -> list[str]:
    """What is legal in a document, or in rows that its templates read, but likely a mistake."""
    warnings = document.warnings()
    for field, template in document.templates("grader").items():
        for variable in template.variables:
            if variable.namespace != "item":
                continue
            num_nulls = sum(is_null(variable, item) for item in items)
            if num_nulls:
                where = f"{{{{ {variable.text} }}}} of {field}"
                rows = f"{num_nulls} of {len(items)} rows"
                warnings.append(f"{where} is null in {rows}, where it is rendered as `null`")
    return warnings


def is_null(variable: Variable, item: Item) -> bool:
    try:
        return variable.resolve(item) is None
    except MissingVariable:
        return False


def local_judges(document: GraderDocument) -> list[str]:
    """The models that graders ask in this process, `local:…`, each once."""
    models = [part.model for part in document.parts() if isinstance(part, ModelGrader)]
    return list(dict.fromkeys(model for model in models if model.startswith(LOCAL)))


def passes(document: GraderDocument, grade: Grade, settings: GradingSettings) -> dict[str, bool]:
    """Whether each grader that has a `pass_threshold` and gave a reward reached it, by its name."""
    grades = {part.name: part for part in (grade, *grade.sub_grades.values())}
    passed = {}
    for part in document.parts():
        threshold = getattr(part, "pass_threshold", None)
        reward = grades[part.name].reward
        if threshold is not None and reward is not None:
            shaped = settings.pass_threshold_shapes_reward
            passed[part.name] = reward == 1 if shaped else reward >= threshold
    return passed


def grader_parts(document: GraderDocument) -> list[tuple[str, str]]:
    """Name and type of the grader and, for a multi, of its children, in document order."""
    return [(part.name, part.type) for part in document.parts()]


def template_problems(
    document: GraderDocument, items: Iterable[tuple[str, Item]], where: str = "grader"
) -> list[Problem]:
    """The `item.*` variables of the grader's templates that rows lack; each row comes with its place.

    `where` is the grader's place. The first three rows are told for each variable, the rest is
    counted. A malformed template is left to `problems_of`.
    """
    templates = document.templates(where)
    problems: list[Problem] = []
    num_rows: Counter[tuple[str, str]] = Counter()
    for place, item in items:
        for field, variable, missing in missing_variables(templates, item):
            num_rows[field, variable.text] += 1
            if num_rows[field, variable.text] <= MAX_ROWS_TOLD:
                what = f"{{{{ {variable.text} }}}} of {field}: {missing}"
                problems.append(Problem(what, place, "add it to the row or mend the template"))
    for (field, text), count in num_rows.items():
        if count > MAX_ROWS_TOLD:
            what = f"{{{{ {text} }}}} is missing from {count - MAX_ROWS_TOLD} more rows"
            problems.append(Problem(what, field))
    return problems


def output_json_problems(
    document: GraderDocument, where: str = "grader", *, has_json: bool
) -> list[Problem]:
    """The templates that read `sample.output_json` although the job asks for no JSON (`has_json`)."""
    what = "completions have output_json only with a response_format that asks for JSON"
    remedy = "set one, or read sample.output_text"
    return [
        Problem(f"`{{{{ {variable.text} }}}}`: {what}", field, remedy)
        for field, variable in sample_variables(document, "output_json", where)
        if not has_json
    ]


def output_json_warnings(document: GraderDocument, *, has_json: bool) -> list[str]:
    """The sources that read `output_json` although the job asks for no JSON (`has_json`)."""
    sources = [part for part in document.parts() if isinstance(part, Python)]
    return [
        f"{part.name}: source line {lines[0]}: a sample has output_json only with a response_format that "
        "asks for JSON: set one, or read sample['output_text'], with json.loads if it is JSON"
        for part in sources
        if not has_json and (lines := reading_lines(part.source, "output_json"))
    ]


def output_tools_warnings(
    document: GraderDocument, where: str = "grader", *, has_tools: bool
) -> list[str]:
    """The templates that read `sample.output_tools` although no row has tools to call (`has_tools`)."""
    return [
        f"{{{{ {variable.text} }}}} of {field} reads tool calls, but no row has `tools`: there are none"
        for field, variable in sample_variables(document, "output_tools", where)
        if not has_tools
    ]


def sample_variables(
    document: GraderDocument, root: str, where: str
) -> Iterator[tuple[str, Variable]]:
    """Field and variable wherever a template reads `sample.<root>`."""
    for field, template in document.templates(where).items():
        for variable in template.variables:
            if variable.namespace == "sample" and variable.path[0] == root:
                yield field, variable


def missing_variables(
    templates: Mapping[str, Template], item: Item
) -> Iterator[tuple[str, Variable, MissingVariable]]:
    """Field, variable and reason of each `item.*` that one row lacks."""
    for field, template in templates.items():
        for variable in template.variables:
            if variable.namespace != "item":
                continue
            try:
                variable.resolve(item)
            except MissingVariable as missing:
                yield field, variable, missing
