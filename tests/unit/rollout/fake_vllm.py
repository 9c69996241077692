"""A vLLM server in miniature: real HTTP on this machine, real PEFT folders, a tiny model's own forward pass."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import tiny_model

BASE = "tiny"
BASE_ADAPTER = "none"


class FakeVllm(ThreadingHTTPServer):
    """Answers as vLLM 0.32 does; its faults are attributes that a test sets."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, max_tokens: int = 512):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.max_tokens = max_tokens
        self.calls: list[tuple[str, Any]] = []
        """(path, body) of each request that got an answer."""
        self.failures: list[int] = []
        """Statuses for the next completions; 0 breaks the connection."""
        self.dies_after: int | None = None
        """Completions after which every connection for one breaks."""
        self.stuck_at: str | None = None
        """An adapter that answers in place of any other."""
        self.is_raw = False
        """Logprobs before the temperature, vLLM's default."""
        self.drops_token_ids = False
        self.model: PeftModel = get_peft_model(
            tiny_model(), LoraConfig(target_modules=["q_proj"]), adapter_name=BASE_ADAPTER
        ).eval()
        self.names: list[str] = []
        self.model.requires_grad_(False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence: a client that ends its calls goes away in the middle of a reply."""

    def bodies(self, path: str) -> list[Any]:
        return [body for called, body in self.calls if called == path]

    def fails(self, body: dict[str, Any]) -> bool:
        if self.dies_after is None or not body.get("return_token_ids"):
            return bool(self.failures)
        drawn = [asked for asked in self.bodies("/v1/completions") if "return_token_ids" in asked]
        return len(drawn) >= self.dies_after

    def load(self, name: str, folder: str) -> tuple[int, Any]:
        if name in self.names:
            return 400, {
                "error": {"message": f"The lora adapter '{name}' has already been loaded."}
            }
        try:
            self.model.load_adapter(folder, adapter_name=name)
        except (OSError, ValueError) as error:
            return 404, {"error": {"message": str(error)}}
        self.names.append(name)
        return 200, "Success"

    def unload(self, name: str) -> tuple[int, Any]:
        if name not in self.names:
            return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found."}}
        self.names.remove(name)
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] != BASE and body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = [{"index": i, **self._choice(ids, body)} for i, ids in enumerate(prompts)]
        return 200, {"choices": choices}

    def _choice(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"])
        temperature, ends = body["temperature"], body.get("stop_token_ids", [])
        drawn: list[int] = []
        recorded: list[float] = []
        asked: list[dict[str, float]] = []
        while len(drawn) < body["max_tokens"] and not (drawn and drawn[-1] in ends):
            logits = self._logits(prompt + drawn, body["model"])
            tempered = (logits / (temperature or 1.0)).log_softmax(-1)
            told = logits.log_softmax(-1) if self.is_raw else tempered
            token = int(tempered.argmax())
            if temperature:
                token = int(torch.multinomial(tempered.exp(), 1, generator=generator))
            drawn.append(token)
            recorded.append(float(told[token]))
            asked.append(
                {f"token_id:{i}": float(told[i]) for i in body.get("logprob_token_ids", ())}
            )
        is_stop = bool(drawn) and drawn[-1] in ends
        return {
            "finish_reason": "stop" if is_stop else "length",
            "token_ids": None if self.drops_token_ids else drawn,
            "logprobs": {"token_logprobs": recorded, "top_logprobs": asked},
        }

    @torch.no_grad()
    def _logits(self, token_ids: list[int], name: str) -> torch.Tensor:
        with self.lock:
            used = BASE_ADAPTER if name == BASE else self.stuck_at or name
            self.model.set_adapter(used)
            logits: torch.Tensor = self.model(input_ids=torch.tensor([token_ids])).logits[0, -1]
            return logits.double()


class Handler(BaseHTTPRequestHandler):
    server: FakeVllm
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        card = {"id": BASE, "parent": None, "max_model_len": self.server.max_tokens}
        self._reply(200, {"version": "0.32.0"} if self.path == "/version" else {"data": [card]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions" and self.server.fails(body):
            status = self.server.failures.pop(0) if self.server.failures else 0
            if status == 0:
                self.close_connection = True
                return
            self._reply(status, {"error": {"message": "the engine is busy"}})
            return
        server = self.server
        if self.path == "/v1/completions":
            status, reply = server.complete(body)
        elif self.path == "/v1/load_lora_adapter":
            status, reply = server.load(body["lora_name"], body["lora_path"])
        else:
            status, reply = server.unload(body["lora_name"])
        server.calls.append((self.path, body))
        self._reply(status, reply)

    def _reply(self, status: int, reply: Any) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""


@contextmanager
def fake_vllm(**options: Any) -> Iterator[FakeVllm]:
    """A server at work in threads until the block ends."""
    with FakeVllm(**options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
