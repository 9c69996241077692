"""The policy: a frozen base model with one trainable LoRA adapter, and its reference.

B completions, T tokens of the longest one; index t speaks of token t.
"""

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rft.attention import use_layouts
from rft.errors import ModelError
from rft.head import Head, read_head, token_logprobs
from rft.merged import MergedModel
from rft.packing import PackedBatch
from rft.sharding import is_sharded
from rft.unpacked import unpacked_logprobs

ADAPTER = "default"
REFERENCE = "reference"

BASE_NOISE = (
    "dropout",
    "activation_dropout",
    "attention_dropout",
    "residual_dropout",
    "embedding_dropout",
    "hidden_dropout",
    "layerdrop",
    "resid_pdrop",
    "router_jitter_noise",
    "jitter_noise",
    "input_jitter_noise",
)
"""Attributes of transformers modules that make their forward pass random in training mode."""

PLAIN_ADAPTER: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, "gaussian"),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
"""What an adapter to continue from may hold: others change the base, or more than a sum W + s · B A."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one pass of the model says about the completions of a packed batch."""

    logprobs: Float[Tensor, "B T"]
    """log p(token t | prompt, tokens < t) at the sampling temperature, nats; 0 beyond the end."""
    entropies: Float[Tensor, "B T"]
    """Entropy of the distribution token t was drawn from, nats; carries no gradient."""


class Policy:
    """Base model + LoRA: logprobs, reference, gradients, save and load.

    Invariants: the base weights never change; only `parameters()` require a gradient; sampling sees
    the model in evaluation mode.
    """

    def __init__(self, model: PeftModel, gradient_checkpointing: bool = False):
        base = model.get_base_model()
        self._own_attention: str = base.config._attn_implementation
        use_layouts(base)
        self.model = model
        self.base: PreTrainedModel = base
        self.device: torch.device = base.get_input_embeddings().weight.device
        self.why_unpacked: str | None = None
        """Why the training pass does without packing, in words; None where it packs."""
        self.is_sharded = is_sharded(base)
        """Whether each pass is collective: all ranks make equally many."""
        if gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        _silence_base_noise(base)
        self.model.eval()
        self._merged: MergedModel | None = None
        self._is_bare = False

    @functools.cached_property
    def head(self) -> Head:
        """The output head by itself. Raises ModelError where the family's is not known."""
        return read_head(self.base)

    def stop_packing(self, why: str) -> None:
        """Go over to the slower training pass, in which the model attends by itself and nothing is merged."""
        self.why_unpacked = why
        self._merged = None
        self.base.set_attn_implementation(self._own_attention)

    @property
    def merges_exactly(self) -> bool:
        """Whether base + LoRA in one weight matrix loses nothing: a full-precision float32 base, all here."""
        is_quantized = getattr(self.base, "is_quantized", False)
        is_whole = not is_quantized and not self.is_sharded
        return is_whole and self.base.get_input_embeddings().weight.dtype == torch.float32

    @property
    def uses_merged(self) -> bool:
        """Whether sampler and trainer run `merged` in place of the base with its adapter."""
        return self.merges_exactly and self.why_unpacked is None

    @property
    def merged(self) -> MergedModel:
        """Base and adapter in one set of matrices, as of the last `refresh`; where it `merges_exactly`."""
        if self._merged is None:
            self._merged = MergedModel(self.base, ADAPTER)
        return self._merged

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable LoRA matrices by name, in a fixed order; float32."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def refresh(self) -> None:
        """To be called after the LoRA matrices changed: the merged copy follows."""
        if self._merged is not None:
            self._merged.refresh()

    def num_rows(self, num_tokens: int) -> int:
        """How long a packed row of so many tokens is made: its products would be computed for as many rows."""
        if not self.uses_merged or self.has_dropout:
            return num_tokens
        return max(product.num_rows(num_tokens) for product in self.merged.products)

    def score(self, batch: PackedBatch, temperature: float) -> Scored:
        """`policy_logprobs` of every completion token; gradient flows to the LoRA matrices."""
        if self.why_unpacked is not None:
            found = unpacked_logprobs(self.base, batch, temperature)
            return Scored(*map(batch.unpack, found))
        return packed_pass(self._scored_model(), self.head, batch, temperature)

    def _scored_model(self) -> PreTrainedModel:
        """The merged copy where it says the same as base and adapter, in half the time."""
        if self._is_bare or self.has_dropout or not self.uses_merged:
            return self.base
        self.merged.begin_pass()
        return self.merged.model

    @torch.no_grad()
    def reference_logprobs(self, batch: PackedBatch, temperature: float) -> Float[Tensor, "B T"]:
        """The same under the model the job started from, without dropout."""
        switched = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with self._as_reference():
                return self.score(batch, temperature).logprobs
        finally:
            for module in switched:
                module.training = True

    @property
    def has_dropout(self) -> bool:
        """Whether the adapter drops inputs in training, so that trainer and sampler differ by design."""
        return any(module.p > 0 for module in self._adapter_dropouts)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """For the passes of an update: the adapter's dropout and checkpointing on, all else as sampled.

        The base never enters training mode: its own dropout, router noise and the like would make the
        trainer see another policy than the sampler drew from.
        """
        models = [self.base, self.merged.model] if self.uses_merged else [self.base]
        layers = (module for model in models for module in model.modules())
        checkpointed = [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]
        switched = [*self._adapter_dropouts, *checkpointed]
        for module in switched:
            module.training = True
        try:
            yield
        finally:
            for module in switched:
                module.training = False

    @functools.cached_property
    def _adapter_dropouts(self) -> list[torch.nn.Dropout]:
        return [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Dropout) and ".lora_dropout." in name
        ]

    def adapter_files(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, bytes]:
        """The files of a PEFT folder that `PeftModel.from_pretrained` loads, of this adapter or of other
        weights for it, by the names of `adapter_tensors`."""
        weights = self.adapter_tensors() if tensors is None else tensors
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        config = self.model.peft_config[ADAPTER]
        document = {
            **json.loads(json.dumps(config.to_dict(), default=sorted)),
            "base_model_name_or_path": self.base.name_or_path or config.base_model_name_or_path,
            "inference_mode": True,
        }
        return {
            "adapter_model.safetensors": save(on_host, metadata={"format": "pt"}),
            "adapter_config.json": json.dumps(_sorted_lists(document), indent=2).encode() + b"\n",
        }

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder. Raises OSError when the disk refuses."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.adapter_files().items():
            (folder / name).write_bytes(content)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter's weights by the names a PEFT folder gives them."""
        tensors = get_peft_model_state_dict(
            self.model, adapter_name=ADAPTER, save_embedding_layers=False
        )
        return dict(tensors)

    def load_adapter(self, weights: Mapping[str, Tensor]) -> None:
        """Put saved adapter weights into the parameters that are there (the optimizer keeps them)."""
        result = set_peft_model_state_dict(self.model, dict(weights), adapter_name=ADAPTER)
        self.refresh()
        expected, found = set(self.adapter_tensors()), set(weights)
        if result.unexpected_keys or expected != found:
            wrong = sorted(expected ^ found) or result.unexpected_keys
            raise ModelError(
                f"the saved adapter is not this policy's: {wrong[0]} is missing or extra"
            )

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """`score` speaks of the bare base model."""
        self._is_bare = True
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self._is_bare = False

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if REFERENCE not in self.model.peft_config:
            with self.adapter_off():
                yield
            return
        self._is_bare = True
        self.model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(ADAPTER)
            self._is_bare = False


class BareModel:
    """The base of a policy by itself, as the native sampler wants it: nothing of the adapter is in it."""

    def __init__(self, policy: Policy):
        self.base: PreTrainedModel = policy.base
        self.device: torch.device = policy.device
        self.head: Head = policy.head
        self.merges_exactly: bool = policy.merges_exactly
        self.uses_merged: bool = policy.uses_merged

    @functools.cached_property
    def merged(self) -> MergedModel:
        """A second copy of the matrices, laid out as the sampler is fastest."""
        return MergedModel(self.base, None)

    def refresh(self) -> None:
        """Nothing changes."""

    def score(self, batch: PackedBatch, temperature: float) -> Scored:
        """As `Policy.score`, without gradient; where nothing is merged, the adapter is to be off."""
        model = self.base
        if self.uses_merged:
            self.merged.begin_pass()
            model = self.merged.model
        with torch.no_grad():
            return packed_pass(model, self.head, batch, temperature)


def packed_pass(
    model: PreTrainedModel, head: Head, batch: PackedBatch, temperature: float
) -> Scored:
    """One pass of a model whose attention takes layouts over a packed batch."""
    output = model.get_decoder()(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        layout=batch.layout,
    )
    hidden = output.last_hidden_state[0, batch.predictor_index]
    found = token_logprobs(head, hidden, batch.target_ids, temperature, batch.allowed_tokens)
    return Scored(*map(batch.unpack, found))


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The adapter's shape, as in the job document's `engine.lora`."""

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


def new_policy(
    base: PreTrainedModel, shape: LoraShape, seed: int, gradient_checkpointing: bool = False
) -> Policy:
    """A policy that starts as the base model: A drawn from the seed and its own name, B zero."""
    targets: str | list[str] = (
        shape.targets if isinstance(shape.targets, str) else sorted(shape.targets)
    )
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with _without_notices():
            model = get_peft_model(base, config)
    except ValueError as error:
        raise ModelError(
            f"LoRA cannot be put on {targets!r}: {error}",
            where="engine.lora.targets",
            remedy="use all-linear, or names of linear layers of this model",
        ) from None
    _refuse_untrainable_targets(model)
    _initialise(model, seed)
    return Policy(model, gradient_checkpointing)


def continued_policy(
    base: PreTrainedModel, adapter: Path, gradient_checkpointing: bool = False
) -> Policy:
    """A policy that goes on from a saved adapter, which also stays beside it as the reference."""
    _refuse_unusual_adapter(adapter)
    with _without_notices():
        model = PeftModel.from_pretrained(
            base, str(adapter), adapter_name=ADAPTER, is_trainable=True
        )
        model.load_adapter(str(adapter), adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(ADAPTER)
    _refuse_untrainable_targets(model)
    return Policy(model, gradient_checkpointing)


def _silence_base_noise(base: PreTrainedModel) -> None:
    """Checkpointed layers are in training mode in an update: leave them nothing random of their own."""
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." not in name:
            module.p = 0.0
        for attribute in BASE_NOISE:
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


@contextmanager
def _without_notices() -> Iterator[None]:
    """peft asks transformers by a name that transformers announces to drop; nobody here can act on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _refuse_unusual_adapter(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for key, allowed in PLAIN_ADAPTER.items():
        if key in config and config[key] not in allowed:
            raise ModelError(
                f"an adapter with {key}: {config[key]!r} cannot be continued yet",
                where=str(adapter / "adapter_config.json"),
                remedy="merge it into its model, and start a new adapter on that",
            )


def _refuse_untrainable_targets(model: PeftModel) -> None:
    base = model.get_base_model()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and not hasattr(module.get_base_layer(), "weight"):
            raise ModelError(
                f"LoRA on {name}, which is not a linear layer, is not supported yet",
                where="engine.lora.targets",
                remedy="name linear layers there, such as [q_proj, k_proj, v_proj, o_proj]",
            )
    for module in (base.get_output_embeddings(), base.get_input_embeddings()):
        if isinstance(module, LoraLayer):
            raise ModelError(
                "LoRA on the embeddings or the output head is not supported",
                where="engine.lora.targets",
                remedy="leave them out of engine.lora.targets",
            )


def _initialise(model: PeftModel, seed: int) -> None:
    """A ~ U(−1/√fan_in, 1/√fan_in), peft's default (kaiming_uniform, a = √5), but from one generator
    per matrix seeded by sha256(seed:name), so that the targets chosen do not shift one another."""
    for name, parameter in model.named_parameters():
        if ".lora_A." not in name:
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bound = 1 / math.sqrt(parameter.shape[1])
        values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            parameter.copy_(values)


def _sorted_lists(config: dict[str, Any]) -> dict[str, Any]:
    """peft writes sets in hash order; sorted, the same adapter is the same bytes."""
    sort = {key: sorted(value) for key, value in config.items() if isinstance(value, list)}
    return dict(sorted((config | sort).items()))
