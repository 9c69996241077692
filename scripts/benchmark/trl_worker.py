"""TRL's side: its own training loop, halted before each step until the bench asks for something.

`step` lets the loop run one step. `train` does so with recorded completions in place of generated ones.
`sample` calls what the trainer calls to generate. Nothing else of TRL is changed.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from scripts.benchmark.pipes import Channel, peak_memory
from scripts.benchmark.rewards import REWARDS

SETTINGS: Mapping[str, dict[str, Any]] = {
    "bfloat16": {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1},
    "stock": {
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "bf16": False,
    },
    "tuned": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
    },
}
"""One micro-batch and the defaults; the same in float32, as rft computes; what suits a CPU."""


class MeasuredTrainer(GRPOTrainer):
    """Notes when generation and grading were done, and can take recorded completions."""

    recorded: Mapping[str, Any] | None = None
    generated_seconds = 0.0
    scored_at = 0.0
    last: Mapping[str, Any]

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        began = time.perf_counter()
        output = self._recorded(prompts) if self.recorded else super()._generate(prompts)
        self.generated_seconds = time.perf_counter() - began
        self.completion_lengths = [len(ids) for ids in output[1]]
        return output  # type: ignore[no-any-return]

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.advantages = output["advantages"].tolist()
        self.scored_at = time.perf_counter()
        return output  # type: ignore[no-any-return]

    def _recorded(self, prompts: list[Any]) -> tuple[Any, ...]:
        """The recorded completions of these prompts, in the shape of `_generate`."""
        assert self.recorded is not None
        prompt_ids, _, _ = self._tokenize_prompts(prompts)
        if prompt_ids != self.recorded["prompt_ids"]:
            raise ValueError(
                "the recorded completions are of other prompts, or of another template"
            )
        completions = [[{"role": "assistant", "content": t}] for t in self.recorded["texts"]]
        return prompt_ids, self.recorded["completion_ids"], None, completions, None, {}, None, []


class Side(TrainerCallback):
    """Answers the bench wherever the training loop is about to begin a step."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._rewards: list[float] = []

    def start(self, setting: str, job: str, settings: dict[str, Any]) -> None:
        """Load the model and the trainer; the loop runs from `loop` on."""
        self._settings = settings
        self._reward = REWARDS[job]
        self._threads = int(os.environ["OMP_NUM_THREADS"])
        rows = [
            {"prompt": row["messages"], "item": json.dumps(row["item"])}
            for row in settings["train"]
        ]
        tokenizer = AutoTokenizer.from_pretrained(settings["model_folder"], padding_side="left")
        with tempfile.TemporaryDirectory() as folder:
            self._trainer = MeasuredTrainer(
                model=settings["model_folder"],
                reward_funcs=self._grade,
                args=trainer_config(setting, settings, folder),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                peft_config=LoraConfig(
                    r=settings["lora_rank"],
                    lora_alpha=settings["lora_alpha"],
                    lora_dropout=0.0,
                    target_modules="all-linear",
                    task_type="CAUSAL_LM",
                ),
                callbacks=[self],
            )

    def loop(self) -> None:
        """TRL's training loop, until the other end closes."""
        self._trainer.train()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        methods: dict[str, Callable[..., Any]] = {
            "facts": self.facts,
            "sample": self.sample,
            "evaluate": self.evaluate,
            "peak_memory": peak_memory,
        }
        while request := self._channel.receive():
            name, arguments = request
            if name in ("step", "train"):
                self._trainer.recorded = arguments.get("recorded")
                self._began = time.perf_counter()
                return
            self._channel.answer(methods, name, arguments)
        raise SystemExit

    def on_step_end(self, *_: Any, **__: Any) -> None:
        ended = time.perf_counter()
        trainer, lengths = self._trainer, self._trainer.completion_lengths
        group_size = self._settings["group_size"]
        groups = [
            self._rewards[first : first + group_size]
            for first in range(0, len(self._rewards), group_size)
        ]
        self._channel.reply(
            {
                "seconds": ended - self._began,
                "sampling_seconds": trainer.scored_at - self._began,
                "generation_seconds": trainer.generated_seconds,
                "training_seconds": ended - trainer.scored_at,
                **told(lengths),
                "reward_mean": sum(self._rewards) / len(self._rewards),
                "zero_signal_fraction": sum(len(set(g)) == 1 for g in groups) / len(groups),
                "rewards": list(self._rewards),
                "advantages": list(trainer.advantages),
            }
        )

    def facts(self) -> dict[str, Any]:
        import datasets
        import peft
        import transformers
        import trl

        args = self._trainer.args
        modules = (torch, transformers, trl, peft, datasets)
        return {
            "libraries": {module.__name__: module.__version__ for module in modules},
            "threads": torch.get_num_threads(),
            "settings": {key: getattr(args, key) for key in SHOWN},
        }

    def sample(self, first: int) -> dict[str, Any]:
        """Generate for a step's prompts from row `first` on, each repeated for its group, as TRL does."""
        size, group_size = self._settings["batch_size"], self._settings["group_size"]
        rows = self._settings["train"][first : first + size]
        prompts = [row["messages"] for row in rows for _ in range(group_size)]
        self._trainer.recorded = None
        self._trainer.model.train()
        began = time.perf_counter()
        output = self._trainer._generate(prompts)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **told([len(ids) for ids in output[1]])}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Greedy on the held-out rows, all in one batch."""
        began = time.perf_counter()
        rows, tokenizer = self._settings["valid"], self._trainer.processing_class
        ids = [row["token_ids"] for row in rows]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        self._trainer.model.eval()
        output = self._trainer.model.generate(
            **batch, do_sample=False, max_new_tokens=self._settings["max_completion_tokens"]
        )
        self._trainer.model.train()
        answers = output[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        rewards = [self._reward(text, row["item"]) for text, row in zip(texts, rows, strict=True)]
        mean = sum(rewards) / len(rewards)
        return {"valid_reward_mean": mean, "seconds": time.perf_counter() - began}

    def _grade(self, completions: list[Any], item: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        items = [json.loads(row) for row in item]
        self._rewards = [self._reward(text, row) for text, row in zip(texts, items, strict=True)]
        return self._rewards


SHOWN = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "bf16",
    "gradient_checkpointing", "disable_dropout", "learning_rate", "temperature", "top_p", "top_k",
    "max_completion_length", "num_generations", "loss_type", "beta", "scale_rewards", "epsilon",
    "epsilon_high", "num_iterations", "max_grad_norm", "adam_beta1", "adam_beta2", "weight_decay",
    "shuffle_dataset", "use_vllm",
)  # fmt: skip
"""Of GRPOConfig, told in the result."""


def trainer_config(setting: str, settings: Mapping[str, Any], folder: str) -> GRPOConfig:
    """TRL's configuration of the same job."""
    num_prompts = settings["batch_size"]
    return GRPOConfig(
        output_dir=folder,
        **SETTINGS[setting],
        num_generations=settings["group_size"],
        max_completion_length=settings["max_completion_tokens"],
        temperature=settings["temperature"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        loss_type=settings["loss"],
        scale_rewards=settings["advantage_scaling"],
        beta=0.0,
        epsilon=settings["clip_low"],
        epsilon_high=settings["clip_high"],
        num_iterations=1,
        max_grad_norm=settings["max_grad_norm"],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        weight_decay=settings["weight_decay"],
        max_steps=len(settings["train"]) // num_prompts,
        shuffle_dataset=False,
        seed=settings["seed"],
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def told(lengths: Sequence[int]) -> dict[str, Any]:
    num_tokens = sum(lengths)
    return {
        "num_tokens": num_tokens,
        "num_completions": len(lengths),
        "completion_tokens_mean": num_tokens / len(lengths),
    }


def main() -> None:
    channel = Channel()
    side = Side(channel)
    request = channel.receive()
    if request is None:
        return
    channel.answer({"start": side.start}, *request)
    try:
        side.loop()
    except Exception:
        channel.fail()
        raise


if __name__ == "__main__":
    main()
