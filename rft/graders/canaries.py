"""Canaries: answers that no honest grader pays for, and the right answer, which it should.

A hollow canary that earns something shows what a policy under optimisation will find: the judges that
Zhao et al. 2025, "One Token to Fool LLM-as-a-Judge" (arXiv 2507.08794), looked at pay for a lone colon.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rft.errors import GraderError
from rft.graders.fault import GradingFault
from rft.graders.formula import Formula, parse_formula
from rft.graders.grader import Document
from rft.graders.multi import Multi
from rft.graders.sample import make_sample
from rft.graders.string_check import StringCheck
from rft.graders.template import MissingVariable, Template, as_text, parse_template
from rft.graders.text_pair import TextPair
from rft.graders.text_similarity import TextSimilarity
from rft.types import Example, Item, Sample

CanaryKind = Literal["empty", "punctuation", "echo", "reference"]

CANARY_KINDS: tuple[CanaryKind, ...] = ("empty", "punctuation", "echo", "reference")
HOLLOW_KINDS: tuple[CanaryKind, ...] = ("empty", "punctuation", "echo")

PUNCTUATION = ":"

REFERENCE_KEYS = (
    "reference_answer",
    "reference",
    "ground_truth",
    "expected_answer",
    "expected",
    "answer",
    "solution",
    "target",
    "label",
    "gold",
)
"""Where data sets keep the right answer, the plainest name first."""


@dataclass(frozen=True, slots=True)
class Canary:
    """An answer whose worth is known before it is graded."""

    kind: CanaryKind
    """empty: no text; punctuation: a lone colon; echo: the last message of the prompt; reference: the
    right answer. The first three are hollow."""
    text: str

    @property
    def sample(self) -> Sample:
        return make_sample(self.text)


def canaries_of(document: Document, example: Example) -> list[Canary]:
    """The canaries of a row: the hollow ones, and the reference where one is known."""
    canaries = [
        Canary("empty", ""),
        Canary("punctuation", PUNCTUATION),
        Canary("echo", example.messages[-1]["content"]),
    ]
    reference = reference_answer(document, example.item)
    return canaries if reference is None else [*canaries, Canary("reference", reference)]


def reference_answer(document: Document, item: Item) -> str | None:
    """The right answer to a row, where the job tells it.

    It is the text that the first part (of a multi, in document order) wants the whole output to equal
    or resemble; else the text or number that the row has at the first of REFERENCE_KEYS; else the text
    that a part wants in the output (like, ilike). A part tells it only if it reads it from the row,
    apart from the messages, and does not lower the result.
    """
    parts = [part for part in raising_parts(document) if _grades_whole_output(part)]
    equal = [part for part in parts if not _is_containment(part)]
    contained = [part for part in parts if _is_containment(part)]
    told = (*_told(equal, item), *_kept(item), *_told(contained, item))
    return next((text for text in told if text.strip()), None)


def raising_parts(document: Document) -> list[Document]:
    """The grader itself, or the parts of a multi but those that lower its result."""
    if not isinstance(document, Multi):
        return [document]
    try:
        formula = parse_formula(document.calculate_output, document.graders, "calculate_output")
    except GraderError:
        return []
    return [part for key, part in document.graders.items() if not _lowers(formula, key)]


def _lowers(formula: Formula, key: str) -> bool:
    """Whether the result falls when this part goes from 0 to 1, all others earning one half."""

    def result(reward: float) -> float:
        return formula.value({**dict.fromkeys(formula.names, 0.5), key: reward})

    try:
        return result(1.0) < result(0.0)
    except GradingFault:
        return False


def _grades_whole_output(part: Document) -> bool:
    """Whether a part wants `sample.output_text`, and nothing around it, to be like another text."""
    if isinstance(part, StringCheck) and part.operation in ("ne", "neq"):
        return False
    if not isinstance(part, StringCheck | TextSimilarity):
        return False
    pieces = _template(part.input).pieces
    return [getattr(piece, "text", piece) for piece in pieces] == ["sample.output_text"]


def _is_containment(part: Document) -> bool:
    return isinstance(part, StringCheck) and part.operation in ("like", "ilike")


def _told(parts: list[Document], item: Item) -> Iterator[str]:
    """The references of the parts, as far as they read the row alone."""
    for part in parts:
        assert isinstance(part, TextPair)
        template = _template(part.reference)
        roots = {(variable.namespace, variable.path[0]) for variable in template.variables}
        if not roots or template.reads_sample or ("item", "messages") in roots:
            continue
        try:
            values = [variable.resolve(item) for variable in template.variables]
        except MissingVariable:
            continue
        if None not in values:
            yield template.render({}, item)


def _kept(item: Item) -> Iterator[str]:
    for key in REFERENCE_KEYS:
        value = item.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            yield as_text(value)


def _template(text: str) -> Template:
    """An empty one for a malformed text: job documents are refused for it elsewhere."""
    try:
        return parse_template(text, "template")
    except GraderError:
        return Template(())
