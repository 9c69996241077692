"""A faulty document with something harmless at each fault, so that the rest of it can be checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from rft.job.not_yet import GRADER, REINFORCEMENT
from rft.job.places import Fault, KeyPath, dotted

STAND_IN_GRADER: Mapping[str, Any] = {
    "type": "string_check",
    "input": "",
    "reference": "",
    "operation": "eq",
}
GRADER_STAND_INS: Mapping[str, Any] = {
    "input": "",
    "reference": "",
    "operation": "eq",
    "evaluation_metric": "rouge_1",
    "calculate_output": "0",
    "base_url": "http://localhost",
}
"""By the key of a grader's field; none of them makes a fault of its own."""
JOB_STAND_INS: Mapping[KeyPath, Any] = {
    ("model",): "?",
    ("training_file",): "?",
    ("validation_file",): "?",
    ("method",): {"type": "reinforcement"},
    ("method", "type"): "reinforcement",
    REINFORCEMENT: {},
    ("engine", "grading", "judge", "base_url"): "http://localhost",
}


def mended(
    document: Mapping[str, Any], faults: Iterable[Fault], *, whole_graders: bool = False
) -> tuple[dict[str, Any], list[KeyPath]]:
    """The document without what is at fault, and the paths that no longer say what was written.

    With `whole_graders` a faulty field takes its whole grader with it.
    """
    paths = [_replaced_path(fault.path, whole_graders) for fault in faults]
    stand_ins = {path: _stand_in(path) for path in paths if path}
    return _with(document, stand_ins), list(stand_ins)


def _replaced_path(path: KeyPath, whole_graders: bool) -> KeyPath:
    """What goes with the value at a path: the whole of a list, and with `whole_graders` a grader."""
    keys = path[: next((at for at, key in enumerate(path) if isinstance(key, int)), len(path))]
    if keys[: len(GRADER)] != GRADER or not whole_graders:
        return keys
    is_part = len(keys) > len(GRADER) + 1 and keys[len(GRADER)] == "graders"
    return keys[: len(GRADER) + 2] if is_part else GRADER


def _stand_in(path: KeyPath) -> Any:
    """What may stand at a path; None where nothing needs to."""
    if path in JOB_STAND_INS:
        return JOB_STAND_INS[path]
    inner = path[len(GRADER) :]
    if path[: len(GRADER)] != GRADER:
        return None
    if not inner or (len(inner) == 2 and inner[0] == "graders"):
        return {**STAND_IN_GRADER, "name": f"stand-in of {dotted(path)}"}
    key = str(inner[-1])
    return f"stand-in of {dotted(path)}" if key == "name" else GRADER_STAND_INS.get(key)


def _with(section: Any, stand_ins: Mapping[KeyPath, Any]) -> dict[Any, Any]:
    """The mapping with a value at each path, or without that key where it is None; the outermost wins."""
    changed: dict[Any, Any] = dict(section) if isinstance(section, dict) else {}
    inner: dict[Any, dict[KeyPath, Any]] = {}
    for (head, *rest), value in stand_ins.items():
        inner.setdefault(head, {})[tuple(rest)] = value
    for head, below in inner.items():
        value = below[()] if () in below else _with(changed.get(head), below)
        if value is None:
            changed.pop(head, None)
        else:
            changed[head] = value
    return changed
