"""What every part of the job document shares: strict, frozen, no unknown key."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
"""The engine chooses; `resolve_job` says how."""

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A mapping of the job document."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _mapping_if_null(value: Any) -> Any:
    return {} if value is None else value


def _list_if_null(value: Any) -> Any:
    return [] if value is None else value


MAY_BE_EMPTY = BeforeValidator(_mapping_if_null)
"""For a section whose key may stand alone: all its defaults."""

NULL_IS_NO_LIST = BeforeValidator(_list_if_null)

Texts = Annotated[tuple[Text, ...], Field(strict=False)]
"""A list of texts; not strict because YAML gives lists and a frozen document holds tuples."""

Named = Annotated[Mapping[str, Any], MAY_BE_EMPTY]
"""Free keys with any values."""
