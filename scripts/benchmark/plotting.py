"""Asks for a plot: matplotlib lives in TRL's environment, not in rft's."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.benchmark.workers import ROOT, WorkerError, trl_python, worker_environment


def plot(kind: str, data: Mapping[str, Any], path: Path) -> None:
    """Draw `data` as a PNG; raises WorkerError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "data.json"
        source.write_text(json.dumps(data), encoding="utf-8")
        command = [str(trl_python()), "-m", "scripts.benchmark.plots", kind, str(source), str(path)]
        done = subprocess.run(
            command, cwd=ROOT, env=worker_environment(num_threads=1), stdout=sys.stderr
        )
    if done.returncode:
        raise WorkerError(f"{path} could not be drawn; the reason is above")
