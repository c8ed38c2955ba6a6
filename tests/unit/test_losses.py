"""Loss terms by hand and against finite differences."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lingact.activations.functional import (
    activation_gap,
    combine,
    fit_loss,
    fvu,
    kl_over_top,
    kl_per_token,
    mean_gap,
    pooled_contrast,
    pre_activation_hinge,
    profile_gap,
    squared_log_ratio,
    top_part,
)

THIRDS = torch.full((3,), 1 / 3)


def test_the_gap_term_by_hand() -> None:
    # Gaps 1 - 8/10 = 0.2 and 1 - 6/5 = -0.2 and 1 - 1/2 = 0.5.
    activation, reference = torch.tensor([8.0, 6.0, 1.0]), torch.tensor([10.0, 5.0, 2.0])
    assert activation_gap(activation, reference, THIRDS, one_sided=False).item() == pytest.approx((0.04 + 0.04 + 0.25) / 3)
    assert activation_gap(activation, reference, THIRDS, one_sided=True).item() == pytest.approx((0.04 + 0.25) / 3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    assert activation_gap(activation, reference, weights, one_sided=False).item() == pytest.approx(0.5 * 0.04 + 0.3 * 0.04 + 0.2 * 0.25)
    assert activation_gap(reference, reference, THIRDS, one_sided=False).item() == 0


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_direction_of_the_gap_term(one_sided: bool) -> None:
    activation = torch.tensor([8.0, 6.0], requires_grad=True)
    activation_gap(activation, torch.tensor([10.0, 5.0]), torch.tensor([0.5, 0.5]), one_sided=one_sided).backward()
    assert activation.grad is not None
    # d/dA of (1 - A/R)^2 / 2 layers is -(1 - A/R) / R.
    assert activation.grad.tolist() == pytest.approx([-0.02, 0.0 if one_sided else 0.04])


def test_the_profile_term_by_hand() -> None:
    # Layer 1: |(1, 2) - (3, 2)|^2 / |(3, 2)|^2 = 4/13; layer 2: |0 - 2|^2 / 2^2 = 1. The layers have other widths.
    found = profile_gap([torch.tensor([1.0, 2.0]), torch.tensor([0.0])], [torch.tensor([3.0, 2.0]), torch.tensor([2.0])], torch.tensor([0.75, 0.25]))
    assert found.item() == pytest.approx(0.75 * 4 / 13 + 0.25)


def test_the_hinge_by_hand() -> None:
    # Short of the means (1, -3) by (2, 0) and (0, 1): means of 1 and 1/2 over the latents, relative to the mean size 2.
    pre, mean = torch.tensor([[-1.0, 0.0], [5.0, -4.0]], requires_grad=True), torch.tensor([1.0, -3.0])
    found = pre_activation_hinge(pre, mean)
    assert found.tolist() == [1 / 2, 1 / 4]
    found.mean().backward()
    assert pre.grad is not None
    assert pre.grad.tolist() == [[-1 / 8, 0], [0, -1 / 8]], "upwards only, and silent latents, too"
    assert not pre_activation_hinge(mean + torch.ones(4, 1), mean).any()


def test_the_contrast_by_hand() -> None:
    # Cosines of (1, 0) and (0, 5) with (2, 0) and (1, 1): (1, 1/sqrt 2) and (0, 1/sqrt 2); lengths do not matter.
    target, reference, t = torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 0.5
    a, b, c, d = (math.exp(cosine / t) for cosine in (1, 1 / math.sqrt(2), 0, 1 / math.sqrt(2)))
    forth = -(math.log(a / (a + b)) + math.log(d / (c + d))) / 2
    back = -(math.log(a / (a + c)) + math.log(d / (b + d))) / 2
    found = pooled_contrast([target], [reference], torch.ones(1), temperature=t)
    assert found.item() == pytest.approx((forth + back) / 2, rel=1e-5)
    assert pooled_contrast([target], [reference.flip(0)], torch.ones(1), temperature=t) > found, "translations in each other's places"


def test_the_term_of_mean_residuals_by_hand() -> None:
    # |(1, 1) - (1, 3)|^2 / 10 and |(0, 0) - (4, 3)|^2 / 25.
    found = mean_gap(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 3.0], [4.0, 3.0]]), torch.tensor([0.25, 0.75]))
    assert found.item() == pytest.approx(0.25 * 0.4 + 0.75)


def test_twice_and_half_as_loud_cost_the_same() -> None:
    found = squared_log_ratio(torch.tensor([2.0, 3.0, 5.0]), torch.tensor([1.0, 6.0, 5.0]))
    assert found.tolist() == pytest.approx([math.log(2) ** 2, math.log(2) ** 2, 0])


def test_fvu_and_its_growth_by_hand() -> None:
    # Residuals (0, 0) and (2, 4), each guessed as (1, 1): errors 2 and 10, mean (1, 2), squared distances from it 5 and 5.
    error, square, mean = torch.tensor([6.0]), torch.tensor([10.0]), torch.tensor([[1.0, 2.0]])
    assert fvu(error, square, mean).tolist() == [pytest.approx(12 / 10)]
    # Half as much again at one layer, a better fit at the other, which costs nothing.
    found = fit_loss(torch.tensor([0.3, 0.1]), torch.tensor([0.2, 0.2]), torch.tensor([0.4, 0.6]))
    assert found.item() == pytest.approx(0.4 * 0.499)


def test_kl_by_hand() -> None:
    base, other = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log() + 3, torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    expected = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)]
    assert kl_per_token(base, other).tolist() == pytest.approx(expected, rel=1e-5)


def test_kl_over_the_top_by_hand() -> None:
    # Kept is the likeliest of (.5, .3, .2); the others count as one of .5, which the other model gives .4.
    ids, scores = top_part(torch.tensor([[0.3, 0.5, 0.2]]).log() + 7, 1)
    assert ids.tolist() == [[1]]
    assert scores.exp()[0].tolist() == pytest.approx([0.5, 0.5])
    found = kl_over_top(ids, scores, torch.tensor([[0.3, 0.6, 0.1]]).log() - 2)
    assert found.item() == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4), rel=1e-5)


def test_kl_over_the_top_approaches_kl_from_below() -> None:
    base, other = (torch.randn(30, 20, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    exact = kl_per_token(base, other)
    found = [kl_over_top(*top_part(base, top), other) for top in (1, 5, 10, 15, 19, 500)]
    # A top that contains another joins fewer outcomes.
    assert all((more >= less - 1e-6).all() for less, more in pairwise(found))
    assert (found[0] < exact).all()
    torch.testing.assert_close(found[-2], exact)
    torch.testing.assert_close(found[-1], exact, msg="a top of the whole vocabulary and more")


def test_kl_of_equals_is_zero_and_never_negative() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 5
    assert kl_per_token(logits, logits).abs().max() == 0
    assert kl_per_token(logits, logits.roll(1, 0)).min() > 0


# Each as a function of a (layer, token, width) tensor beside a fixed one of the same shape.
WEIGHTS = torch.tensor([0.3, 0.7])
AS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "two_sided": lambda x, y: activation_gap(x[:, 0, 0], y[:, 0, 0], WEIGHTS, one_sided=False),
    "one_sided": lambda x, y: activation_gap(x[:, 0, 0], y[:, 0, 0], WEIGHTS, one_sided=True),
    "profile": lambda x, y: profile_gap(list(x[:, 0]), list(y[:, 0]), WEIGHTS),
    "hinge": lambda x, y: pre_activation_hinge(x[0], y[0, 0]).mean(),
    "contrast": lambda x, y: pooled_contrast(list(x), list(y), WEIGHTS, temperature=0.3),
    "mean": lambda x, y: mean_gap(x[:, 0], y[:, 0], WEIGHTS),
    "norm": lambda x, y: squared_log_ratio(x[0].norm(dim=-1), y[0].norm(dim=-1)).mean(),
    "kl": lambda x, y: kl_per_token(y[0], x[0]).mean(),
    "kl_over_top": lambda x, y: kl_over_top(*top_part(y[0], 1), x[0]).mean(),
    "fit": lambda x, y: fit_loss(fvu(3 * x[:, 0, 0], 2 + x[:, 1, 0], x[:, 2] / 2), y[:, 0, 0] / 9, WEIGHTS),
}


@pytest.mark.parametrize("name", AS_FUNCTIONS)
def test_gradients_against_finite_differences(name: str) -> None:
    random = torch.Generator().manual_seed(2)  # of values that stand on no kink
    x, y = (torch.rand(2, 4, 3, generator=random) + 0.5 for _ in range(2))
    f, step = partial(AS_FUNCTIONS[name], y=y), 1e-3
    x.requires_grad_(True)
    f(x).backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    with torch.no_grad():
        bumps = step * torch.eye(x.numel()).view(-1, *x.shape)
        numeric = torch.stack([(f(x + bump) - f(x - bump)) / (2 * step) for bump in bumps]).view_as(x)
    torch.testing.assert_close(x.grad, numeric, atol=1e-3, rtol=1e-2)


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


def test_all_weights_zero_is_a_step_that_changes_nothing() -> None:
    a = torch.tensor(2.0, requires_grad=True)
    terms = combine({"retention": a}, {"retention": 0.0})
    assert terms.total.item() == 0
    terms.total.backward()
    assert a.grad == 0
