"""The bench's end of the pipes: starts a side in its environment and asks it for measurements."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TRL_ENVIRONMENT = ROOT / ".venv-bench"
TRL_REQUIREMENTS = ROOT / "scripts" / "bench-trl-requirements.txt"
VLLM_ENVIRONMENT = ROOT / ".venv-vllm"


def commit() -> str | None:
    """Of the code as it lies here, `-dirty` where it is not as committed; None where git does not tell."""
    code = ("rft", "scripts", "configs", "constraints.txt")
    found = _git("rev-parse", "--short", "HEAD")
    return found and found + ("-dirty" if _git("status", "--porcelain", "--", *code) else "")


def codes_of(measured: Sequence[Mapping[str, Any]]) -> str | None:
    """The commits of what may have been measured at different times; those that were not noted are unknown."""
    codes = {one.get("code") or "unknown" for one in measured}
    return ", ".join(sorted(codes)) or None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


class WorkerError(Exception):
    """A side could not do what it was asked."""


class Worker:
    """One side in a process of its own; idle, it sleeps in a read."""

    def __init__(self, side: str, python: Path | str, module: str, num_threads: int):
        self.side = side
        self._process = subprocess.Popen(
            [str(python), "-m", f"scripts.benchmark.{module}"],
            cwd=ROOT,
            env=worker_environment(num_threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """One request and its result; raises WorkerError when the side fails or is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.side} ended with {code} at {method}; its output is above")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.side} failed at {method}:\n{reply['error']}")
        return reply["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def worker_environment(num_threads: int) -> dict[str, str]:
    """The same threads for every side; a side that waits for the other sleeps in a read of its pipe."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def rft_worker(num_threads: int, side: str = "rft") -> Worker:
    return Worker(side, sys.executable, "rft_worker", num_threads)


def trl_worker(setting: str, num_threads: int) -> Worker:
    """TRL in its own environment, which is made where it is missing; `setting` is tuned, stock or bfloat16."""
    return Worker(f"trl_{setting}", trl_python(), "trl_worker", num_threads)


def vllm_worker(num_threads: int) -> Worker | None:
    """vLLM in its environment; None where there is none."""
    python = VLLM_ENVIRONMENT / "bin" / "python"
    return Worker("vllm", python, "vllm_worker", num_threads) if python.exists() else None


def gemm_worker(num_threads: int) -> Worker:
    return Worker("gemm", sys.executable, "gemm_worker", num_threads)


def trl_python() -> Path:
    """The Python of TRL's environment, with exactly what the requirements name."""
    python = TRL_ENVIRONMENT / "bin" / "python"
    stamp = TRL_ENVIRONMENT / "installed"
    wanted = TRL_REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        say(f"making {TRL_ENVIRONMENT} (minutes, the first time)")
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(TRL_ENVIRONMENT)])
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        _run([*install, "-r", str(TRL_REQUIREMENTS)])
        stamp.write_text(wanted, encoding="utf-8")
    return python


def say(text: str) -> None:
    """Progress, for who watches; stdout is the result's."""
    print(text, file=sys.stderr, flush=True)


def _run(command: Sequence[str]) -> None:
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise WorkerError(f"{' '.join(command)} failed; its output is above")
