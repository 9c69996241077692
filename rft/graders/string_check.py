"""string_check: 1.0 when two texts compare as asked, else 0.0; raw strings, nothing trimmed."""

from collections.abc import Callable, Mapping
from typing import Literal

from rft.graders.grader import Grader, GradingSettings
from rft.graders.text_pair import TextPair, TextPairGrader

OPERATIONS: Mapping[str, Callable[[str, str], float]] = {
    "eq": lambda text, reference: float(text == reference),
    "ne": lambda text, reference: float(text != reference),
    "neq": lambda text, reference: float(text != reference),
    "like": lambda text, reference: float(reference in text),
    "ilike": lambda text, reference: float(reference.casefold() in text.casefold()),
}


class StringCheck(TextPair):
    """Compares two texts as strings."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "neq", "like", "ilike"]
    """eq: input equals reference; ne, also written neq: it does not; like: input contains
    reference; ilike: the same whatever the case."""

    def open(self, settings: GradingSettings) -> Grader:
        return TextPairGrader(self, settings, OPERATIONS[self.operation], self.both_templates())
