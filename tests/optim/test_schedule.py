"""The learning-rate formula and scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mbcl
from mbcl.errors import ConfigError

STORED = np.load(Path(__file__).parents[1] / "golden" / "lr_schedule.npz")


@pytest.mark.parametrize("case", range(int(STORED["n_cases"])))
def test_cosine_lr_equals_golden_values(case: int) -> None:
    get = {key.split("_", 1)[1]: STORED[key] for key in STORED.files if key.startswith(f"c{case}_")}
    rule = "linear" if int(get["linear"]) else "sqrt"
    scaled = mbcl.optim.scale_lr(float(get["base_lr"]), int(get["batch_size"]), rule)
    assert scaled == pytest.approx(float(get["scaled_lr"]), rel=1e-12)
    rates = [
        mbcl.optim.cosine_lr(float(epoch), scaled, warmup_epochs=int(get["warmup"]), epochs=int(get["epochs"]))
        for epoch in get["epoch"]
    ]
    np.testing.assert_allclose(rates, get["lr"], rtol=0, atol=1e-12)


def test_cosine_lr_and_scale_lr_equal_hand_values() -> None:
    assert mbcl.optim.cosine_lr(epoch=0.0, base_lr=0.4, warmup_epochs=10, epochs=100) == 0
    assert mbcl.optim.cosine_lr(epoch=10, base_lr=0.4, warmup_epochs=10, epochs=100) == 0.4
    assert mbcl.optim.cosine_lr(epoch=100, base_lr=0.4, warmup_epochs=10, epochs=100) == pytest.approx(0, abs=1e-12)
    assert mbcl.optim.cosine_lr(epoch=0, base_lr=0.4, warmup_epochs=0, epochs=10) == 0.4
    assert mbcl.optim.scale_lr(0.075, batch_size=32, rule="sqrt") == pytest.approx(0.42426406871192)
    assert mbcl.optim.scale_lr(0.3, batch_size=512, rule="linear") == pytest.approx(0.6)
    assert mbcl.optim.scale_lr(0.3, batch_size=512, rule="none") == 0.3


def test_cosine_lr_of_a_training_shorter_than_the_warm_up() -> None:
    rates = [mbcl.optim.cosine_lr(epoch, 1.0, warmup_epochs=4, epochs=2) for epoch in (0, 1, 2, 4, 5)]
    assert rates == [0, 0.25, 0.5, 1, 1]


@given(
    epochs=st.integers(1, 200),
    warmup=st.floats(0, 50),
    share=st.floats(0, 1),
    step=st.floats(0, 0.01),
)
def test_cosine_lr_is_continuous_and_at_most_the_peak(epochs: int, warmup: float, share: float, step: float) -> None:
    epoch = share * epochs
    rate = mbcl.optim.cosine_lr(epoch, 1.0, warmup, epochs)
    assert 0 <= rate <= 1
    if warmup > 1 and epochs - warmup > 1:
        assert abs(mbcl.optim.cosine_lr(epoch + step, 1.0, warmup, epochs) - rate) <= 2 * step + 1e-9


@pytest.mark.parametrize(
    "arguments,match",
    [
        ((-1, 1.0, 0, 10), "epoch must be >= 0, found -1"),
        ((1, -1.0, 0, 10), "base_lr must be >= 0"),
        ((1, 1.0, -2, 10), "warmup_epochs must be >= 0"),
        ((1, 1.0, 0, 0), "epochs must be > 0, found 0"),
    ],
)
def test_cosine_lr_refuses_bad_arguments(arguments: tuple[float, float, float, float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        mbcl.optim.cosine_lr(*arguments)


def test_scale_lr_refuses_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="rule must be one of sqrt, linear, none, found 'cube'"):
        mbcl.optim.scale_lr(0.1, 32, "cube")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size must be a whole number >= 1, found 0"):
        mbcl.optim.scale_lr(0.1, 0, "sqrt")
