"""Normalisation, cosine similarity, and the checks of numeric arguments."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import check_count, check_number, cosine_similarity, normalize, raise_half


def test_normalize_equals_hand_values() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 1e-13]], dtype=torch.float64)
    expected = torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(normalize(x), expected)


@given(seed=st.integers(0, 2**31), exponent=st.integers(-9, 9))
@settings(max_examples=20, deadline=None)
def test_normalize_gives_unit_rows_at_any_scale(seed: int, exponent: int) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    torch.testing.assert_close(normalize(x).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(normalize(x), normalize(normalize(x)))


def test_normalize_passes_gradcheck() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize, (x,))


def test_cosine_similarity_computes_in_float32_or_more() -> None:
    assert raise_half(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert normalize(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float32
    assert normalize(torch.ones(2, 2, dtype=torch.float64)).dtype == torch.float64
    u, v = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosine_similarity(u, v)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, cosine_similarity(u, v))


def test_cosine_similarity_equals_torchs() -> None:
    u, v = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            expected = torch.nn.functional.cosine_similarity(u[i], v[j], dim=0)
            torch.testing.assert_close(cosine_similarity(u, v)[i, j], expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", None, True, [1.0]])
def test_check_number_refuses_other_types(value: object) -> None:
    with pytest.raises(ConfigError, match="beta must be a number >= 0"):
        check_number("beta", value, least=0.0)


def test_check_number_and_check_count_enforce_ranges() -> None:
    assert check_number("x", 1, least=1.0, most=1.0) == 1
    for value in (0.0, 2.5):
        with pytest.raises(ConfigError, match=f"x must be > 0 and <= 2, found {value}"):
            check_number("x", value, above=0.0, most=2.0)
    for value in (0, 1.0, True, "3"):
        with pytest.raises(ConfigError, match="k must be a whole number >= 1"):
            check_count("k", value)
