"""AdamW on the LoRA matrices, the learning-rate schedule, and the optimizer's state as plain tensors."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Schedule
) -> float:
    """The share of the learning rate used in a step (1-based).

    Rises linearly over `warmup_steps`, then stays, or falls to 0 after the last step, straight (`linear`)
    or as half a cosine (`cosine`, Loshchilov & Hutter 2017).
    """
    if step <= warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def new_optimizer(
    parameters: Mapping[str, torch.nn.Parameter],
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); the learning rate is set before each update."""
    return torch.optim.AdamW(
        list(parameters.values()), lr=0.0, betas=betas, weight_decay=weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients down to the norm `max_norm` (0 = never); gives the norm before."""
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    if max_norm > 0 and norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return float(norm)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>|<slot>` → tensor, which it goes on writing to."""
    return {
        f"{name}|{slot}": value.detach()
        for name, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give an optimizer copies of what `optimizer_tensors` gave."""
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        parameter = parameters[name]
        device = value.device if slot == "step" else parameter.device
        optimizer.state[parameter][slot] = value.to(device, copy=True)
