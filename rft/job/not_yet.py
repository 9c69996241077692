"""Legal requests that are not built: they are refused by name, never ignored."""

from collections.abc import Iterator, Mapping
from typing import Any

from rft.job.places import Fault, KeyPath, dotted

REINFORCEMENT: KeyPath = ("method", "reinforcement")
GRADER: KeyPath = (*REINFORCEMENT, "grader")

UNBUILT_VALUES: Mapping[KeyPath, tuple[str, ...]] = {
    ("method", "type"): ("supervised", "dpo"),
    ("engine", "model", "dtype"): ("float16",),
    ("engine", "grading", "python", "sandbox"): ("kernel+ns", "docker", "seatbelt"),
}
BUILT_VALUES: Mapping[KeyPath, str] = {
    ("method", "type"): "reinforcement",
    ("engine", "model", "dtype"): "auto, float32 or bfloat16 (float16 would lose small gradients)",
    ("engine", "grading", "python", "sandbox"): "auto, kernel, monty or unsafe-local",
}


def not_yet_faults(document: Any) -> list[Fault]:
    """A fault for every value of a raw document that asks for something not built yet."""
    return [*_unbuilt_values(document), *_unbuilt_keys(document)]


def moot_path(fault: Fault) -> KeyPath:
    """The part of the document about which nothing more needs to be said."""
    return ("method",) if fault.path == ("method", "type") else fault.path


def _unbuilt_values(document: Any) -> Iterator[Fault]:
    for path, unbuilt in UNBUILT_VALUES.items():
        value = _at(document, path)
        if isinstance(value, str) and value in unbuilt:
            what = f"{dotted(path)}: {value} is not built yet"
            yield Fault(path, what, f"so far: {BUILT_VALUES[path]}", not_yet=True)


def _unbuilt_keys(document: Any) -> Iterator[Fault]:
    path = (*REINFORCEMENT, "response_format")
    response_format = _at(document, path)
    if isinstance(response_format, dict) and response_format.get("type") == "grammar":
        what = "a response_format of type grammar is not built yet"
        yield Fault(path, what, "so far: text, json_object or json_schema", not_yet=True)
    for key in ("tools", "max_episode_steps"):
        if _at(document, (*REINFORCEMENT, key)) is not None:
            what = f"{dotted(REINFORCEMENT)}.{key} is not built yet"
            yield Fault((*REINFORCEMENT, key), what, "remove it", at_key=True, not_yet=True)


def _at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
