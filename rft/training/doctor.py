"""What this machine offers to a job."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from rft.allocator import settle_memory
from rft.graders.tiers import Tier, best_tier, kernel_layers, tier_problem
from rft.models.cache import models_cache
from rft.rollout.invariance import ROW_MULTIPLE
from rft.runs.environment import environment

GIB = 2**30


def examine() -> dict[str, Any]:
    """Devices, kernels, the grading sandbox, free disk and versions; nothing is changed."""
    return {
        **environment(),
        "device": _device(),
        "cpu": {
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "rows_bitwise_from": _safe_rows(),
            "memory": settle_memory(),
        },
        "sandbox": _sandbox(),
        "extras": {
            "quantization (bitsandbytes)": find_spec("bitsandbytes") is not None,
            "vllm inside the process (vllm)": find_spec("vllm") is not None,
        },
        "free_disk_gib": {
            "here": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
            "model cache": _free(models_cache()),
        },
    }


def _device() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"auto": "cpu", "dtype": "float32", "cuda": None}
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "auto": "cuda",
        "dtype": "bfloat16" if torch.cuda.is_bf16_supported() else "float32",
        "cuda": [f"{d.name}, {d.total_memory / GIB:.0f} GiB" for d in devices],
    }


def _sandbox() -> dict[str, Any]:
    """The sandboxes for python graders, and why one is missing; the layers of the strongest."""
    tiers: tuple[Tier, ...] = ("kernel", "monty")
    problems = {tier: tier_problem(tier) for tier in tiers}
    return {
        "auto": best_tier(),
        **{tier: f"no: {why}" if why else "yes" for tier, why in problems.items()},
        "unsafe-local": "only where a job names it: nothing keeps a grader from files and network",
        "layers of kernel": {
            layer.name: f"yes ({layer.words})" if layer.is_there else f"no: {layer.words}"
            for layer in kernel_layers()
        },
    }


@torch.inference_mode()
def _safe_rows() -> int | None:
    """Row count from which a float32 matrix product no longer depends on it; None when it always does."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(64, 576, generator=generator) for _ in range(2))
    full = F.linear(rows, weight)
    counts = range(ROW_MULTIPLE, 65, ROW_MULTIPLE)
    unsafe = [n for n in counts if not torch.equal(F.linear(rows[:n], weight), full[:n])]
    safe = max(unsafe, default=0) + ROW_MULTIPLE
    return safe if safe < 64 else None


def _free(folder: Path) -> float:
    """GiB free where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / GIB, 1)
