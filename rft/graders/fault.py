"""Why a sample could not be graded, on its way to becoming a grade."""

from collections.abc import Mapping
from typing import Literal

Flag = Literal[
    "sample_parse_error",
    "invalid_variable_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "endpoint_grader_server_error",
    "endpoint_grader_internal_error",
    "endpoint_grader_safety_check_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
    "model_grader_exceeded_max_tokens_error",
    "other_error",
]
"""The product's error flags that these graders raise."""


class GradingFault(Exception):
    """A sample could not be graded as the document says; never leaves a grader."""

    def __init__(
        self,
        flag: Flag,
        details: str,
        *,
        of_sample: bool,
        usage: Mapping[str, int] | None = None,
        model: str = "",
    ):
        super().__init__(details)
        self.flag = flag
        self.details = details
        self.of_sample = of_sample
        self.usage = usage or {}
        """Tokens of a model's reply that could not be read."""
        self.model = model
