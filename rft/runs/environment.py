"""What env.json says of the machine and the libraries; no names, no paths, no secrets."""

import os
import platform
from importlib import metadata
from typing import Any

from rft import __version__

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
    "rapidfuzz",
    "sacrebleu",
    "nltk",
    "bitsandbytes",
    "vllm",
)
SHOWN_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG")
"""Environment variables that change numerics; no other is read."""


def environment(**facts: Any) -> dict[str, Any]:
    """Versions, platform and processor, and the `facts` of whoever trains: device, world size …"""
    return {
        "python": platform.python_version(),
        "rft": __version__,
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cores": available_cores(),
        "variables": {name: os.environ[name] for name in SHOWN_VARIABLES if name in os.environ},
        **facts,
    }


def available_cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
