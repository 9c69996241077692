"""The sandboxes for python graders: which there are, and what this machine has of them."""

import sys
from dataclasses import dataclass
from typing import Literal

from rft.errors import MachineError
from rft.graders.landlock import landlock_abi
from rft.graders.lockdown import c_library, missing_layer
from rft.graders.monty import monty_problem

Tier = Literal["kernel", "monty", "unsafe-local"]
"""kernel: a process that Linux keeps from files, network and other processes; monty: a small Python
interpreter without access to anything; unsafe-local: a process with limits that runs as the user."""

WHERE = "engine.grading.python.sandbox"
UNSAFE = "write unsafe-local there: graders can then read your files and use the network"


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing that stands between a python grader and the machine."""

    name: str
    is_there: bool
    words: str
    """What provides it, or why it is missing."""


def best_tier() -> Tier:
    """What `auto` stands for here: never unsafe-local, which must be named."""
    return "kernel" if sys.platform.startswith("linux") else "monty"


def tier_problem(tier: Tier) -> str | None:
    """Why this machine lacks a sandbox, or None when it has it."""
    if tier == "kernel":
        return missing_layer()
    return monty_problem() if tier == "monty" else None


def require_tier(tier: Tier) -> None:
    """Raises MachineError when this machine cannot give what a job asks for: nothing weaker is taken."""
    if problem := tier_problem(tier):
        other: Tier = "monty" if tier == "kernel" else "kernel"
        remedy = f"write {other} there, or {UNSAFE}" if tier_problem(other) is None else UNSAFE
        what = f"the sandbox {tier} is not available here: {problem}"
        raise MachineError(what, where=WHERE, remedy=remedy)


def kernel_layers() -> list[Layer]:
    """The layers of the kernel tier on this machine, strongest needs last."""
    problem = missing_layer()
    abi = 0 if problem else landlock_abi(c_library())

    def landlock(name: str, least_abi: int, linux: str) -> Layer:
        is_there = abi >= least_abi
        why = problem or f"needs Linux {linux}"
        return Layer(name, is_there, f"Landlock ABI {abi}" if is_there else why)

    filtered = problem or "seccomp"
    return [
        Layer("own process, clean environment, a fork per sample", True, "always"),
        Layer("limits on time, memory, disk, open files", True, "timers, rlimits"),
        Layer("no powers of root", problem is None, problem or "capabilities, no_new_privs"),
        landlock("no files but Python's own and a scratch folder", 1, "5.13"),
        Layer("no network", problem is None, filtered),
        Layer("no new programs or processes", problem is None, filtered),
        Layer("no other process's memory, no signals from grade", problem is None, filtered),
        landlock("no signals from the source's top level", 6, "6.12"),
    ]
