"""Measures the GEMM limit in a process of its own, whose packed weights are nobody's peak memory."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rft.allocator import settle_memory
from scripts.benchmark.gemm import (
    KERNELS,
    Call,
    Operation,
    Seconds,
    fastest,
    limit_seconds,
    measured,
    model_weights,
    operations,
    rows_needed,
)
from scripts.benchmark.pipes import Channel


class Limit:
    def start(self, model_folder: str) -> None:
        settle_memory()  # the limit is that of the machine, with memory as rft has it
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        weights = model_weights(model)
        self._operations: dict[str, list[Operation]] = {
            name: operations(weights, kernel) for name, kernel in KERNELS.items()
        }

    def measure(self, calls: Sequence[Call], prefill_head_rows: int) -> dict[str, Any]:
        """The limit of these calls in seconds, and the fastest kernels' seconds by rows."""
        by_rows: dict[int, Seconds] = {}
        by_kernel: dict[int, dict[str, float]] = {}
        for rows in rows_needed(calls, prefill_head_rows):
            seconds = {name: measured(ops, rows) for name, ops in self._operations.items()}
            by_rows[rows] = fastest(seconds)
            by_kernel[rows] = {
                name: sum(value for part, value in one.items() if "+" not in part)
                for name, one in seconds.items()
            }
        return {
            "seconds": limit_seconds(calls, by_rows, prefill_head_rows),
            "by_rows": by_rows,
            "unfused_by_kernel": by_kernel,
        }


def main() -> None:
    limit = Limit()
    Channel().serve({"start": limit.start, "measure": limit.measure})


if __name__ == "__main__":
    main()
