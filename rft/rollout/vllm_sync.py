"""Versions of the adapter on their way from the trainer to vLLM, each under a name of its own.

A name is never used twice: vLLM keys its prefix cache by it, and loading in place leaves a flag that
reads the folder again at every step (vLLM pull request 41482).
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from rft.errors import MachineError, RftError
from rft.rollout.vllm_canary import (
    Confirmed,
    Logprobs,
    Pairs,
    confirm,
    refuse_untempered,
    replica_logprobs,
)
from rft.rollout.vllm_replica import Replica


class AdapterSync:
    """Writes, loads, checks and retires adapters; every replica gets each. For the main process only."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        pairs: Pairs,
        tolerance: float,
        shared_folder: Path | None,
    ):
        """`shared_folder` must have the same path for the servers; None: a temporary folder."""
        self._replicas = replicas
        self._pairs = pairs
        self._tolerance = tolerance
        self._shared_folder = shared_folder
        self._folder: Path | None = None
        self._job = uuid.uuid4().hex[:12]
        self._num_versions = 0
        self._names: list[str] = []  # of versions that a replica may hold, the newest last
        self._confirmed: dict[str, Confirmed] = {}

    def examine(self, bare: Logprobs) -> None:
        """Before the first sync: does each replica record what it draws from, and serve our base model?

        `bare` is the trainer's answer to the canary without the adapter.
        """
        for replica in self._replicas:
            refuse_untempered(replica, self._pairs)
            answered = replica_logprobs(replica, self._pairs, None)
            self._confirmed[replica.place] = confirm(
                replica.place, bare, answered, None, self._tolerance
            )

    def publish(self, present: Logprobs, save: Callable[[Path], None]) -> str:
        """Load what `save` writes under a new name, let the canary confirm it, then drop the version
        before; gives the name. `present` is the trainer's answer to the canary."""
        self._num_versions += 1
        name = f"rft-{self._job}-v{self._num_versions}"
        folder = self._write(name, save)
        self._names.append(name)
        for replica in self._replicas:
            replica.load_adapter(name, folder)
        for replica in self._replicas:
            answered = replica_logprobs(replica, self._pairs, name)
            self._confirmed[replica.place] = confirm(
                replica.place, present, answered, self._confirmed[replica.place], self._tolerance
            )
        for before in self._names[:-1]:
            for replica in self._replicas:
                replica.unload_adapter(before)
            shutil.rmtree(folder.parent / before, ignore_errors=True)
            self._names.remove(before)
        return name

    def close(self) -> None:
        """Leave nothing behind in a replica that still lives, nor on the disk."""
        for replica in self._replicas:
            with suppress(RftError):
                for name in self._names:
                    replica.unload_adapter(name)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, name: str, save: Callable[[Path], None]) -> Path:
        """A folder that appears whole."""
        try:
            if self._folder is None:
                if self._shared_folder is not None:
                    self._shared_folder.mkdir(parents=True, exist_ok=True)
                made = tempfile.mkdtemp(prefix="rft-adapters-", dir=self._shared_folder)
                self._folder = Path(made).resolve()
                self._folder.chmod(0o755)  # the server may run as somebody else
            folder, unfinished = self._folder / name, self._folder / f".{name}"
            save(unfinished)
            os.rename(unfinished, folder)
        except (OSError, SafetensorError) as error:
            raise _unwritable(self._folder or self._shared_folder, error) from None
        return folder


def _unwritable(folder: Path | None, error: Exception) -> MachineError:
    return MachineError(
        f"the adapter cannot be written for vLLM: {getattr(error, 'strerror', None) or error}",
        where=str(folder or tempfile.gettempdir()),
        remedy="make room there, or name another folder in engine.rollout.vllm.adapter_folder",
    )
