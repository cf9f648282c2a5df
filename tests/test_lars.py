"""LARS against the paper's formula in numpy, and against timm's."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vit_rs.methods import LARS


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (5,), (2, 3, 2, 2), (), (4, 4)]
    values = [nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in shapes]
    values[-1].data.zero_()  # a head that starts at zero
    return values


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters()]


def run(optimizer: torch.optim.Optimizer, values: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for p, gradient in zip(values, gradients(step), strict=True):
            p.grad = gradient.to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 2.0 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.9, 0.1), (0.0, 0.1)])
def test_every_step_is_that_of_the_formula(momentum: float, weight_decay: float) -> None:
    values = parameters()
    expected = [p.detach().numpy().copy() for p in values]
    buffers = [np.zeros_like(w) for w in expected]
    optimizer = LARS(values, lr=1.0, momentum=momentum, weight_decay=weight_decay, trust_coefficient=0.02)
    for step in range(4):
        run(optimizer, values, range(step, step + 1))
        for i, gradient in enumerate(gradients(step)):
            w, g = expected[i], gradient.numpy()
            weight_norm, gradient_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            ratio = 1.0
            if w.ndim > 1 and weight_norm > 0:
                ratio = 0.02 * weight_norm / (gradient_norm + weight_decay * weight_norm)
            buffers[i] = momentum * buffers[i] + ratio * (g + weight_decay * w)
            expected[i] = w - 2.0 / (1 + step) * buffers[i]
        for p, w in zip(values, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12, atol=1e-15)


@pytest.mark.parity
def test_matrices_move_as_in_timm() -> None:
    from timm.optim.lars import Lars

    ours, theirs = [p for p in parameters() if p.ndim > 1], [p for p in parameters() if p.ndim > 1]
    first = LARS(ours, lr=1.0, momentum=0.9, weight_decay=0.05)
    second = Lars(theirs, lr=1.0, momentum=0.9, weight_decay=0.05, trust_coeff=0.001, eps=0.0)
    for step in range(3):
        for p, q, gradient in zip(ours, theirs, [g for g in gradients(step) if g.ndim > 1], strict=True):
            p.grad, q.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_groups_have_their_own_numbers() -> None:
    values = parameters()
    optimizer = LARS([{"params": values[:2]}, {"params": values[2:], "weight_decay": 0.3}], lr=1.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]
    before = values[3].detach().clone()
    for p in values:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(values[3].detach(), before * (1 - 0.3))  # a scalar: plain decay
    assert torch.equal(values[0].detach(), parameters()[0].detach())  # no gradient, no decay: it stays


def test_gradients_are_left_alone_and_none_is_skipped() -> None:
    values = parameters()
    optimizer = LARS(values, lr=1.0, weight_decay=0.1)
    for p, gradient in zip(values[1:], gradients(0)[1:], strict=True):
        p.grad = gradient
    optimizer.step()
    assert torch.equal(values[0].detach(), parameters()[0].detach())
    for p, gradient in zip(values[1:], gradients(0)[1:], strict=True):
        assert torch.equal(p.grad, gradient)
    assert optimizer.step(lambda: 3.5) == 3.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_restored_state_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    whole, cut = parameters(dtype), parameters(dtype)
    run(LARS(whole, lr=1.0, weight_decay=0.1), whole, range(5))
    first = LARS(cut, lr=1.0, weight_decay=0.1)
    run(first, cut, range(2))
    state = copy.deepcopy(first.state_dict())
    second = LARS(cut, lr=7.0)
    second.load_state_dict(state)
    run(second, cut, range(2, 5))
    for p, q in zip(whole, cut, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, r"lr must be finite and at least 0, got -1\.0"),
        ({"lr": float("nan")}, "lr must be finite and at least 0, got nan"),
        ({"momentum": 1.0}, r"momentum must be at least 0 and under 1, got 1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay must be finite and at least 0, got -0\.1"),
        ({"trust_coefficient": 0.0}, r"trust_coefficient must be finite and over 0, got 0\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS(parameters(), **{"lr": 1.0, **changes})
    with pytest.raises(ValueError, match=message):
        LARS([{"params": parameters(), **changes}], lr=1.0)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = LARS(table.parameters(), lr=1.0)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients, got a sparse one of shape \(4, 2\)"):
        optimizer.step()
