"""Loss terms by hand and against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lingact.losses import activation_gap, combine, kl_per_token, retention_kl


def test_the_gap_term_by_hand() -> None:
    # Gaps 1 - 8/10 = 0.2 and 1 - 6/5 = -0.2 and 1 - 1/2 = 0.5.
    activation, reference = torch.tensor([8.0, 6.0, 1.0]), torch.tensor([10.0, 5.0, 2.0])
    assert activation_gap(activation, reference, one_sided=False).item() == pytest.approx((0.04 + 0.04 + 0.25) / 3)
    assert activation_gap(activation, reference, one_sided=True).item() == pytest.approx((0.04 + 0.25) / 3)
    assert activation_gap(reference, reference, one_sided=False).item() == 0


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_direction_of_the_gap_term(one_sided: bool) -> None:
    activation = torch.tensor([8.0, 6.0], requires_grad=True)
    activation_gap(activation, torch.tensor([10.0, 5.0]), one_sided=one_sided).backward()
    assert activation.grad is not None
    # d/dA of (1 - A/R)^2 / 2 layers is -(1 - A/R) / R.
    assert activation.grad.tolist() == pytest.approx([-0.02, 0.0 if one_sided else 0.04])


def test_kl_by_hand() -> None:
    base, other = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log() + 3, torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    expected = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)]
    assert kl_per_token(base, other).tolist() == pytest.approx(expected, rel=1e-5)
    assert retention_kl(base, other).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_kl_of_equals_is_zero_and_never_negative() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 5
    assert kl_per_token(logits, logits).abs().max() == 0
    assert kl_per_token(logits, logits.roll(1, 0)).min() > 0


def numeric(f: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        bump = torch.zeros_like(x)
        bump.view(-1)[i] = step
        gradient.view(-1)[i] = (f(x + bump) - f(x - bump)) / (2 * step)
    return gradient


def test_gradients_against_finite_differences() -> None:
    base, other = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    other.requires_grad_(True)
    base.requires_grad_(True)
    retention_kl(base, other).backward()
    torch.testing.assert_close(other.grad, numeric(lambda y: retention_kl(base, y), other.detach(), 1e-2), atol=1e-3, rtol=1e-2)
    assert base.grad is None, "the base is no way out"
    activation, reference = torch.tensor([3.0, 7.0, 2.0], requires_grad=True), torch.tensor([4.0, 4.0, 4.0])
    for one_sided in (False, True):
        activation.grad = None
        activation_gap(activation, reference, one_sided=one_sided).backward()
        expected = numeric(lambda a, one=one_sided: activation_gap(a, reference, one_sided=one), activation.detach(), 1e-2)
        torch.testing.assert_close(activation.grad, expected, atol=1e-3, rtol=1e-2)


def test_terms_are_weighted_and_kept() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    terms = combine({"gap": a, "retention": b}, {"gap": 0.5, "retention": 10.0})
    assert terms.total.item() == 31
    assert {k: v.item() for k, v in terms.raw.items()} == {"gap": 2, "retention": 3}
    assert {k: v.item() for k, v in terms.weighted.items()} == {"gap": 1, "retention": 30}
    terms.total.backward()
    assert (a.grad, b.grad) == (0.5, 10)


def test_a_term_of_weight_zero_is_logged_and_not_trained_on() -> None:
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(math.inf, requires_grad=True)
    terms = combine({"gap": a, "retention": b}, {"gap": 1.0, "retention": 0.0})
    assert terms.total.item() == 2
    assert terms.raw["retention"].item() == math.inf
    terms.total.backward()
    assert b.grad is None
