"""One vLLM server (`vllm serve`) as a replica: token ids and logprobs over its OpenAI-like API."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rft.errors import MachineError
from rft.rollout.vllm_http import BACKOFF_SECONDS, RESTART, JsonClient, Refused
from rft.rollout.vllm_replica import Answer, Ask, fitting_lora_rank

PLAIN_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Said in every request: what is left out, a server takes from the model's generation_config."""
PARTING_SECONDS = 10.0
"""Limit of what is asked once, after `close`."""
TOKEN_PREFIX = "token_id:"
START_SERVER = (
    "start it with --enable-lora --max-lora-rank {rank} --logprobs-mode processed_logprobs and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
)


class VllmServer:
    """Asks one server; a request per completion, so that each is graded as soon as it is finished."""

    asks_per_call: int | None = 1

    def __init__(
        self,
        url: str,
        seconds: float,
        lora_rank: int,
        needed_tokens: int,
        backoff_seconds: float = BACKOFF_SECONDS,
    ):
        """`needed_tokens`: the longest prompt with its completion. Raises MachineError when nobody
        answers there, or the server's context is too short."""
        self._client = JsonClient(url, seconds, backoff_seconds)
        self._parting = JsonClient(url, min(seconds, PARTING_SECONDS), max_retries=0)
        self.place = self._client.place
        self._start = START_SERVER.format(rank=fitting_lora_rank(lora_rank))
        self.version = str(_at(self._get("/version"), "version") or "unknown")
        self._base = self._base_model(needed_tokens)

    def complete(self, asks: Sequence[Ask], adapter: str | None) -> list[Answer]:
        return [self._complete(ask, adapter) for ask in asks]

    def next_logprobs(
        self,
        prompts: Sequence[tuple[int, ...]],
        candidates: Sequence[int],
        temperature: float,
        adapter: str | None,
    ) -> list[list[float]]:
        """One token is drawn after each prompt and thrown away.

        Not by `prompt_logprobs`: with adapters enabled those kill the engine of vLLM's CPU build, and
        what counts is what sampling itself records.
        """
        reply = self._sample(
            {
                "prompt": [list(prompt) for prompt in prompts],
                "max_tokens": 1,
                "temperature": temperature,
                "seed": 0,
                "logprobs": len(candidates),
                "logprob_token_ids": list(candidates),
                "return_tokens_as_token_ids": True,
            },
            adapter,
        )
        choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        try:
            found = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
            rows = [[float(row[f"{TOKEN_PREFIX}{c}"]) for c in candidates] for row in found]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._odd_reply(f"no logprob of an asked token ({error})") from None
        if len(rows) != len(prompts):
            raise self._odd_reply(f"{len(rows)} choices for {len(prompts)} prompts")
        return rows

    def load_adapter(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            self._client.post("/v1/load_lora_adapter", body)
        except Refused as refusal:
            if "already been loaded" in refusal.message:  # by an attempt whose reply got lost
                return
            raise self._client.fault(
                f"does not load the adapter {folder}: {refusal}", self._start
            ) from None

    def unload_adapter(self, name: str) -> None:
        client = self._parting if self._client.is_closed else self._client
        try:
            client.post("/v1/unload_lora_adapter", {"lora_name": name})
        except Refused as refusal:
            if refusal.status != 404:
                raise self._client.fault(
                    f"does not unload {name}: {refusal}", self._start
                ) from None

    def close(self) -> None:
        self._client.close()

    def _complete(self, ask: Ask, adapter: str | None) -> Answer:
        reply = self._sample(
            {
                "prompt": list(ask.prompt_ids),
                "max_tokens": ask.max_tokens,
                "temperature": ask.temperature,
                "seed": ask.seed,
                "stop": list(ask.stop),
                "stop_token_ids": list(ask.end_token_ids),
                "ignore_eos": True,  # `stop_token_ids` says them all
                "logprobs": 0,
                "return_token_ids": True,
            },
            adapter,
        )
        choice = reply["choices"][0]
        token_ids = _at(choice, "token_ids") or ()
        logprobs = _at(_at(choice, "logprobs"), "token_logprobs") or ()
        reason = _at(choice, "finish_reason")
        if reason not in ("stop", "length"):
            raise self._client.fault(f"ended a completion with {reason!r}", RESTART)
        if not token_ids or len(token_ids) != len(logprobs):
            raise self._odd_reply("no token ids with their logprobs")
        return Answer(tuple(token_ids), tuple(float(value) for value in logprobs), reason)

    def _sample(self, body: dict[str, Any], adapter: str | None) -> dict[str, Any]:
        body = {**PLAIN_SAMPLING, **body, "model": adapter or self._base}
        try:
            reply = self._client.post("/v1/completions", body)
        except Refused as refusal:
            raise self._client.fault(
                f"turns a request down: {refusal}", self._remedy(refusal)
            ) from None
        if not _at(reply, "choices"):
            raise self._odd_reply("no choices")
        return dict(reply)

    def _remedy(self, refusal: Refused) -> str:
        if refusal.status == 401:
            return "put its key into the environment variable VLLM_API_KEY"
        if refusal.status == 404:
            return f"it has lost the adapter, as after a restart: {RESTART}"
        return self._start

    def _get(self, path: str) -> Any:
        try:
            return self._client.get(path)
        except Refused as refusal:
            raise self._client.fault(f"refuses {path}: {refusal}", self._remedy(refusal)) from None

    def _base_model(self, needed_tokens: int) -> str:
        models = _at(self._get("/v1/models"), "data") or []
        bases = [model for model in models if _at(model, "parent") is None]
        if not bases:
            raise self._odd_reply("no base model under /v1/models")
        length = _at(bases[0], "max_model_len")
        if isinstance(length, int) and length < needed_tokens:
            raise self._client.fault(
                f"holds {length} tokens, a prompt with its completion may have {needed_tokens}",
                f"start it with --max-model-len {needed_tokens}, or lower max_completion_tokens",
            )
        return str(bases[0]["id"])

    def _odd_reply(self, what: str) -> MachineError:
        told = f"(version {self.version}) gives {what}"
        return self._client.fault(told, "rft needs vLLM 0.32 or newer there")


def _at(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None
