"""Affinity: golden numbers, a slow oracle, properties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbcl.errors import ConfigError
from mbcl.functional import affinity

STORED = np.load(Path(__file__).parents[1] / "golden" / "affinity.npz")


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
def test_affinity_equals_golden_values(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    get = {key: STORED[f"c{case}_{key}"] for key in ("U", "V", "u_raw", "v_raw", "t", "B", "aff_f64", "expaff_f64")}
    with monkeypatch.context() as patch:
        # The stored U and V are normalised and divided by the root of the temperature already.
        patch.setattr("mbcl.functional._affinity.normalize", lambda z: z)
        u, v = torch.tensor(get["U"]), torch.tensor(get["V"])
        log_weights = affinity(u, v, temperature=1.0, batch_size=int(get["B"])).numpy()
    # The stored numbers are log(1 + x), not log1p(x): small ones have the rounding error of 1 + x, about 1e-16.
    np.testing.assert_allclose(log_weights, get["aff_f64"], rtol=1e-12, atol=1e-15)
    # exp turns an absolute error of the logarithm into a relative one, and the logarithms reach about 50
    np.testing.assert_allclose(np.exp(log_weights), get["expaff_f64"], rtol=1e-12 * np.abs(log_weights).max())
    # The stored rows were normalised in float32; in float64 the last bits of the inputs count.
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 4e-6)):
        raw = affinity(
            torch.tensor(get["u_raw"], dtype=dtype),
            torch.tensor(get["v_raw"], dtype=dtype),
            temperature=float(get["t"]),
            batch_size=int(get["B"]),
        )
        assert raw.dtype == torch.float64
        np.testing.assert_allclose(raw.numpy(), get["aff_f64"], rtol=rtol, atol=1e-15)


@given(seed=st.integers(0, 2**31), size=st.integers(1, 6), batch_size=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_affinity_equals_the_oracle_and_is_symmetric(seed: int, size: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    log_weights = affinity(u, v, temperature=0.5, batch_size=batch_size)
    z = [[float(a @ b / (a.norm() * b.norm())) / 0.5 for b in v] for a in u]
    for i in range(size):
        for j in range(size):
            gaps = (z[i][j] - z[i][i], z[j][i] - z[i][i], z[j][i] - z[j][j], z[i][j] - z[j][j])
            expected = sum(math.log(1 + (batch_size - 1) * math.exp(gap)) for gap in gaps)
            assert log_weights[i, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert torch.equal(log_weights, log_weights.T)
    torch.testing.assert_close(log_weights.diagonal(), torch.full((size,), 4 * math.log(batch_size)).double())


def test_affinity_is_finite_at_a_tiny_temperature() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    log_weights = affinity(z, -z, temperature=0.001, batch_size=32)
    assert torch.isfinite(log_weights).all()
    assert log_weights.max() > 710  # beyond what exp can hold in float64


def test_affinity_refuses_bad_input() -> None:
    eye = torch.eye(3)
    with pytest.raises(ConfigError, match="batch_size must be >= 1, found 0"):
        affinity(eye, eye, temperature=0.1, batch_size=0)
    with pytest.raises(ConfigError, match="temperature"):
        affinity(eye, eye, temperature=0.0, batch_size=2)
    with pytest.raises(ValueError, match="of one shape"):
        affinity(eye, eye[:2], temperature=0.1, batch_size=2)
