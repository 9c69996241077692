"""The sandboxes for python graders: which there are, and what this machine has of them."""

import sys
from typing import Literal

Tier = Literal["kernel", "monty", "unsafe-local"]
"""kernel: a process that Linux keeps from files, network and other processes; monty: a small Python
interpreter without access to anything; unsafe-local: a process with limits that runs as the user."""


def best_tier() -> Tier:
    """What `auto` stands for here: never unsafe-local, which must be named."""
    return "kernel" if sys.platform.startswith("linux") else "monty"
