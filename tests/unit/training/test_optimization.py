"""The schedule, gradient clipping, and an optimizer whose state goes to disk and back."""

import math

import pytest
import torch
from torch import Tensor

from rft.training.host_tensors import HostTensors
from rft.training.optimization import (
    Schedule,
    clip_gradients,
    learning_rate_factor,
    load_optimizer_tensors,
    new_optimizer,
    optimizer_tensors,
    set_learning_rate,
)


@pytest.mark.parametrize(
    ("schedule", "total", "warmup", "factors"),
    [
        ("constant", 4, 0, [1, 1, 1, 1]),
        ("constant", 5, 3, [1 / 3, 2 / 3, 1, 1, 1]),
        ("constant", 3, 10, [0.1, 0.2, 0.3]),
        ("linear", 4, 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 6, 2, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("linear", 1, 0, [1]),
        ("cosine", 4, 0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("cosine", 3, 1, [1, 1, 0.5]),
        ("linear", 3, 3, [1 / 3, 2 / 3, 1]),
        ("linear", 2, 5, [0.2, 0.4]),
    ],
)
def test_learning_rate_factor(
    schedule: Schedule, total: int, warmup: int, factors: list[float]
) -> None:
    found = [learning_rate_factor(step, total, warmup, schedule) for step in range(1, total + 1)]
    assert found == pytest.approx(factors, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_nothing_is_left_after_the_last_step(schedule: Schedule) -> None:
    assert learning_rate_factor(11, 10, 2, schedule) == pytest.approx(0, abs=1e-15)
    assert learning_rate_factor(30, 10, 2, schedule) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("max_norm", "expected"),
    [
        # gradients (3, 0) and (4,): norm 5
        (1.0, [[0.6, 0.0], [0.8]]),
        (2.5, [[1.5, 0.0], [2.0]]),
        (5.0, [[3.0, 0.0], [4.0]]),
        (9.0, [[3.0, 0.0], [4.0]]),
        (0.0, [[3.0, 0.0], [4.0]]),
    ],
)
def test_clipping_scales_all_gradients_by_one_factor(
    max_norm: float, expected: list[list[float]]
) -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert clip_gradients(gradients, max_norm) == 5.0
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.tolist() == pytest.approx(wanted, rel=1e-6)


def test_clipping_of_zero_gradients() -> None:
    gradients = [torch.zeros(3)]
    assert clip_gradients(gradients, 1.0) == 0
    assert gradients[0].tolist() == [0, 0, 0]


def new_parameters(values: dict[str, Tensor]) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}


def advance(
    optimizer: torch.optim.AdamW, parameters: dict[str, torch.nn.Parameter], steps: range
) -> None:
    for step in steps:
        set_learning_rate(optimizer, 0.1 / step)
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_the_first_update_is_adamw() -> None:
    """m̂ = g and v̂ = g² at step 1: the change is −lr · (sign(g) · |g|/(|g| + 1e-8) + decay · p)."""
    parameters = new_parameters({"a": torch.tensor([1.0, -2.0])})
    optimizer = new_optimizer(parameters, (0.9, 0.99), weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    parameters["a"].grad = torch.tensor([4.0, -0.5])
    optimizer.step()
    # 1 − 0.1·(1 + 0.5·1) = 0.85 and −2 − 0.1·(−1 + 0.5·(−2)) = −1.8
    assert parameters["a"].tolist() == pytest.approx([0.85, -1.8], rel=1e-6)
    # second step, gradient 0: m = 0.1·0.9·g, v = 0.01·0.99·g², corrections 1 − 0.81, 1 − 0.9801
    parameters["a"].grad = torch.zeros(2)
    optimizer.step()
    size = 0.1 * (0.09 / 0.19) / math.sqrt(0.0099 / 0.0199)
    expected = [0.85 * 0.95 - size, -1.8 * 0.95 + size]
    assert parameters["a"].tolist() == pytest.approx(expected, rel=1e-5)


def test_restored_state_gives_the_same_next_updates_bit_for_bit() -> None:
    start = {"x.A": torch.randn(3, 4), "x.B": torch.randn(5)}
    parameters = new_parameters(start)
    optimizer = new_optimizer(parameters, (0.9, 0.99), 0.01)
    advance(optimizer, parameters, range(1, 4))
    saved = HostTensors(optimizer_tensors(optimizer, parameters))
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    advance(optimizer, parameters, range(4, 7))

    again = new_parameters(weights)
    restored = new_optimizer(again, (0.9, 0.99), 0.01)
    load_optimizer_tensors(restored, again, saved)
    advance(restored, again, range(4, 7))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, again[name])
        assert not torch.equal(parameter, weights[name])
    once_more = new_parameters(weights)
    restored = new_optimizer(once_more, (0.9, 0.99), 0.01)
    load_optimizer_tensors(restored, once_more, saved)  # the updates above wrote to copies
    advance(restored, once_more, range(4, 7))
    assert all(torch.equal(parameter, once_more[name]) for name, parameter in parameters.items())

    forgetful = new_parameters(weights)
    advance(new_optimizer(forgetful, (0.9, 0.99), 0.01), forgetful, range(4, 7))
    assert not torch.equal(forgetful["x.A"], parameters["x.A"])


def test_saved_state_has_a_name_for_each_tensor_and_its_copy_stays() -> None:
    parameters = new_parameters({"x.A": torch.ones(2)})
    optimizer = new_optimizer(parameters, (0.9, 0.99), 0.0)
    assert optimizer_tensors(optimizer, parameters) == {}
    advance(optimizer, parameters, range(1, 2))
    live = optimizer_tensors(optimizer, parameters)
    assert sorted(live) == ["x.A|exp_avg", "x.A|exp_avg_sq", "x.A|step"]
    saved = HostTensors(live)
    before = {name: tensor.tolist() for name, tensor in saved.items()}
    assert before["x.A|step"] == 1.0
    advance(optimizer, parameters, range(2, 3))
    assert {name: tensor.tolist() for name, tensor in saved.items()} == before
    assert all(live[name].tolist() != before[name] for name in live)
