"""The jobs' graders as plain functions, for a trainer that takes such: the same rewards, computed in its process.

They cost less than the sandboxed graders that the other side runs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rapidfuzz import fuzz

Reward = Callable[[str, Mapping[str, Any]], float]


def arithmetic_reward(text: str, item: Mapping[str, Any]) -> float:
    """1 for the number alone, 0.5 when it stands among other words, else 0."""
    if text.strip() == str(item["sum"]):
        return 1.0
    return 0.5 if str(item["sum"]) in re.findall(r"\d+", text) else 0.0


def capitals_reward(text: str, item: Mapping[str, Any]) -> float:
    """0.4 · likeness + 0.5 · the name and nothing else + 0.1 · no sentence about "the capital"."""
    similarity = fuzz.ratio(text, item["capital"]) / 100
    exact = float(text.strip().lower() == item["capital"].lower())
    sentence = float("capital" in text.casefold())
    return 0.4 * similarity + 0.5 * exact + 0.1 * (1 - sentence)


REWARDS: Mapping[str, Reward] = {"arithmetic": arithmetic_reward, "capitals": capitals_reward}
