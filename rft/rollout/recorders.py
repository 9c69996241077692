"""How work on a device is made cheap to repeat: CUDA graphs, or the same kernels launched again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from rft.rollout.memory import is_out_of_memory

Kernels = Callable[[], None]
"""Work on the device that reads and writes fixed addresses only; running it twice is running it once."""


@runtime_checkable
class Recording(Protocol):
    """Work that can be run again on what its buffers hold then."""

    @property
    def num_bytes(self) -> int:
        """Device memory it keeps."""

    def replay(self) -> None: ...


@runtime_checkable
class Recorder(Protocol):
    """Turns work into something cheap to repeat."""

    @property
    def facts(self) -> Mapping[str, object]:
        """How decoding steps are run, for env.json."""

    def record(self, kernels: Kernels) -> Recording:
        """Raises RuntimeError where the work cannot be recorded, or memory runs out."""


@dataclass(frozen=True, slots=True)
class EagerRecording:
    kernels: Kernels
    num_bytes: int = 0

    def replay(self) -> None:
        self.kernels()


@dataclass(frozen=True, slots=True)
class EagerRecorder:
    """Launches the kernels one by one, each time."""

    reason: str | None = None
    """Why nothing more is captured, where it was tried."""

    @property
    def facts(self) -> Mapping[str, object]:
        refusal = {} if self.reason is None else {"decode_capture_refused": self.reason}
        return {"decode": "eager", **refusal}

    def record(self, kernels: Kernels) -> Recording:
        return EagerRecording(kernels)


@dataclass(frozen=True, slots=True)
class CudaRecording:
    graph: torch.cuda.CUDAGraph
    num_bytes: int

    def replay(self) -> None:
        self.graph.replay()


class CudaRecorder:
    """Captures CUDA graphs on one side stream, with one memory pool for the temporaries of all.

    The pool can be shared as graphs run one after the other and leave their results outside it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def facts(self) -> Mapping[str, object]:
        return {"decode": "cuda graphs"}

    def record(self, kernels: Kernels) -> Recording:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                kernels()  # lazy initialisation and the workspaces of this stream
                with _host_waits_are_errors():
                    kernels()
                return self._captured(kernels)
        finally:
            current.wait_stream(self._stream)

    def _captured(self, kernels: Kernels) -> CudaRecording:
        torch.cuda.synchronize(self._device)
        num_free, _ = torch.cuda.mem_get_info(self._device)
        graph = torch.cuda.CUDAGraph()
        with (
            _generator_kept(self._device),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            kernels()
        num_free_after, _ = torch.cuda.mem_get_info(self._device)
        return CudaRecording(graph, max(0, num_free - num_free_after))


class RecorderWithFallback:
    """Records as another does until that refuses; from then on eagerly, which its facts say.

    Want of memory is no refusal: in less of it, with fewer slots, the same work can be recorded.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    @property
    def facts(self) -> Mapping[str, object]:
        return self._recorder.facts

    def record(self, kernels: Kernels) -> Recording:
        try:
            return self._recorder.record(kernels)
        except RuntimeError as error:  # a fault of the work itself comes up again when it is run
            if _is_want_of_memory(error):
                raise
            self._recorder = EagerRecorder(reason=str(error).partition("\n")[0])
            return self._recorder.record(kernels)


def _is_want_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, be it that the capture it broke fails with a word of its own."""
    causes = (error, error.__context__)
    return any(cause is not None and is_out_of_memory(cause) for cause in causes)


@contextmanager
def _host_waits_are_errors() -> Iterator[None]:
    """Refuse work that waits for the device before a capture does: that would break the capture."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def _generator_kept(device: torch.device) -> Iterator[None]:
    """A capture that fails leaves the device's generator believing it is captured; give it its state back."""
    generator = torch.cuda.default_generators[device.index or 0]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise
