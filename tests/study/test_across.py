import numpy as np
import pytest
from report.studies import EIGHT, MRR, grid
from scipy import stats

from mbcl.cli.app import main
from mbcl.errors import ConfigError
from mbcl.io.store import LocalStore
from mbcl.study.across import gains_across, interquartile_mean
from mbcl.study.record import WEIGHTS, write_study


def test_interquartile_mean_equals_a_hand_value_and_scipys_bootstrap() -> None:
    assert interquartile_mean(np.array([[0.0, 10.0, 1.0, 2.0], [3.0, -90.0, 4.0, 5.0]]))[0] == (1 + 2 + 3 + 4) / 4
    gains_TN = np.random.default_rng(0).standard_normal((3, 8))

    def iqm(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)

    _, low, high = interquartile_mean(gains_TN)
    expected = stats.bootstrap(tuple(gains_TN), iqm, n_resamples=10_000, method="percentile", vectorized=True)
    # The standard error of a 2.5 % quantile of 10,000 draws, about s / 40 for a normal distribution, in both.
    tolerance = 5 * 2**0.5 * expected.standard_error / 40
    assert abs(low - expected.confidence_interval.low) < tolerance
    assert abs(high - expected.confidence_interval.high) < tolerance


def test_interquartile_mean_mirrors_shifts_and_scales() -> None:
    gains_TN = np.random.default_rng(1).standard_normal((2, 6))
    mean, low, high = interquartile_mean(gains_TN)
    assert interquartile_mean(2 * gains_TN + 1) == pytest.approx((2 * mean + 1, 2 * low + 1, 2 * high + 1), abs=1e-9)
    assert interquartile_mean(-gains_TN) == pytest.approx((-mean, -high, -low), abs=1e-9)
    assert low <= mean <= high


def test_gains_are_shares_of_the_baseline_in_each_study() -> None:
    halved = {name: [value / 2 for value in values] for name, values in EIGHT.items()}
    metric, (osgd, spectral) = gains_across([grid(EIGHT), grid(halved)])
    assert (metric, osgd.label, spectral.baseline_label, spectral.n) == (MRR, "osgd (k=20, q=5)", "shuffle", 8)
    expected = (np.mean(EIGHT["spectral"]) - np.mean(EIGHT["shuffle"])) / np.mean(EIGHT["shuffle"])
    assert spectral.means == pytest.approx((expected, expected), abs=1e-9)
    assert spectral.improvement == 1.0
    assert spectral.ci_low <= spectral.iqm <= spectral.ci_high


def test_gains_need_common_settings_and_equal_numbers_of_pairs() -> None:
    short = {name: values[:6] for name, values in EIGHT.items()}
    with pytest.raises(ConfigError, match="equal numbers of pairs of seeds, found samplers 8, samplers 6"):
        gains_across([grid(EIGHT), grid(short)])
    with pytest.raises(ConfigError, match="no setting in common"):
        gains_across([grid(EIGHT), grid({"shuffle": EIGHT["shuffle"]})])


def test_gains_over_different_baselines_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match="no setting in common"):
        gains_across([grid(EIGHT), grid(EIGHT, baseline={"sampler": {"name": "osgd"}})])


def test_gains_of_studies_on_the_same_data_are_not_mixed() -> None:
    """Trainings on one data set would count as those on two, as if they were independent."""
    one, other, third = (grid(EIGHT, name=name) for name in ("one", "other", "third"))
    for study, digest in ((one, "a1"), (other, "b2"), (third, "a1")):
        study.data = {"digits-0": [digest], f"{WEIGHTS} /models/start.pt": ["c3"]}
    assert len(gains_across([one, other])[1]) == 2
    with pytest.raises(ConfigError, match="one and third are on the same data"):
        gains_across([one, other, third])


@pytest.mark.parametrize(("pairs", "shown"), [(5, False), (6, True)])
def test_an_interval_needs_as_many_pairs_as_any_claim(pairs: int, shown: bool) -> None:
    study = grid({name: values[:pairs] for name, values in EIGHT.items()})
    if shown:
        assert [gain.n for gain in gains_across([study, study])[1]] == [pairs, pairs]
    else:
        with pytest.raises(ConfigError, match="no setting in common with 6 pairs of seeds at least in each"):
            gains_across([study, study])


def test_report_of_several_studies_prints_a_table(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        write_study(LocalStore(folder), grid(EIGHT))
    assert main(["report", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{MRR}: gain over the baseline")
    assert [line.split("  ")[0] for line in lines[2:4]] == ["osgd (k=20, q=5)", "spectral (k=4)"]
    assert lines[-1] == "studies.html"
    assert (tmp_path / "studies.html").is_file()
    assert main(["report", folders[0]]) == 0
    assert (tmp_path / "one" / "report.html").is_file()
    assert main(["report"]) == 2
    assert "give the folder of a study" in capsys.readouterr().err
