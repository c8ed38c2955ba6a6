"""Values that are not finite are found wherever they are, counted, and named."""

import pytest
import torch

from lingact.models.finite import describe, nonfinite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("value", "counted"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinite"), (float("-inf"), "1 infinite")])
def test_one_value_among_many_is_found(dtype: torch.dtype, value: float, counted: str) -> None:
    weight = torch.zeros(30, 70, dtype=dtype)
    assert nonfinite([("w", weight)]) == {}
    weight[29, 69] = value
    found = nonfinite([("good", torch.ones(3)), ("w", weight)])
    assert list(found) == ["w"]
    assert str(found["w"]) == counted


def test_all_kinds_are_counted_and_the_order_is_kept() -> None:
    first, second = torch.ones(4, 5), torch.ones(7)
    first[0, :3], first[1, :2], second[6] = float("nan"), float("inf"), float("-inf")
    found = nonfinite(
        [("first", first), ("second", second), ("numbers", torch.arange(3)), ("nothing", torch.empty(0)), ("far", torch.empty(2, device="meta"))]
    )
    assert {name: str(each) for name, each in found.items()} == {"first": "3 NaN and 2 infinite", "second": "1 infinite"}
    assert (
        describe(found, {"first": "a.safetensors"})
        == "'first' in 'a.safetensors' holds 5 values that are not finite (3 NaN and 2 infinite), and 1 more tensor does"
    )
    assert describe({"second": found["second"]}) == "'second' holds 1 value that is not finite (1 infinite)"


def test_only_positive_infinity_can_have_a_meaning() -> None:
    for value, fine in ((float("inf"), True), (float("-inf"), False), (float("nan"), False)):
        assert (nonfinite([("threshold", torch.tensor([0.5, value]))], may_be_infinite=("threshold",)) == {}) is fine
    # Beside an infinity that is allowed another value still counts.
    assert nonfinite([("threshold", torch.tensor([float("inf"), float("nan")]))], may_be_infinite=("threshold",))


def test_large_finite_values_are_finite() -> None:
    assert nonfinite([("w", torch.tensor([65504.0, -65504.0], dtype=torch.float16)), ("v", torch.tensor([3e38, -3e38]))]) == {}
