import pytest
from report.studies import FULL, OSGD, SHUFFLE, SPECTRAL, grid, study, trial

from mbcl.study.settings import flatten, labels, settings_of, swept_columns, text_of


def labels_of(*parameters: dict) -> list[str]:
    trials = [
        trial(
            i,
            i,
            0,
            p.get("sampler", SHUFFLE),
            0.5,
            parameters=p,
            objective=p.get("objective", {"name": "simclr"})["name"],
        )
        for i, p in enumerate(parameters)
    ]
    return [setting.label for setting in settings_of(study(trials))]


def test_flatten_uses_dotted_keys() -> None:
    assert flatten({"sampler": SPECTRAL, "train.epochs": 5}) == {
        "sampler": "spectral",
        "sampler.k": 4,
        "sampler.temperature": 0.1,
        "train.epochs": 5,
    }
    assert flatten({"train": {"epochs": 3, "deep": {"a": None}}}) == {"train.epochs": 3, "train.deep.a": None}
    assert flatten({}) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (4, "4"), (0.1, "0.1"), (True, "true"), (None, "null"), ([1, "x"], '[1, "x"]'), (1e-7, "1e-07")],
)
def test_text_of_is_short(value: object, text: str) -> None:
    assert text_of(value) == text


def test_settings_of_label_what_differs() -> None:
    assert [s.label for s in settings_of(grid(FULL))] == ["shuffle", "osgd (k=20, q=5)", "spectral (k=4)"]
    assert labels_of({"sampler": SPECTRAL}, {"sampler": SPECTRAL | {"k": 8}}) == ["spectral (k=4)", "spectral (k=8)"]
    assert labels_of({"train.batch_size": 16}, {"train.batch_size": 32}) == ["batch_size=16", "batch_size=32"]
    assert labels_of({"sampler": OSGD}) == ["osgd"]
    sim, clip = {"name": "simclr", "temperature": 0.1}, {"name": "clip", "temperature": 0.1}
    assert labels_of(
        {"objective": sim, "sampler": SHUFFLE},
        {"objective": clip, "sampler": SHUFFLE},
        {"objective": sim, "sampler": SPECTRAL},
    ) == ["shuffle, simclr", "shuffle, clip", "spectral (k=4), simclr"]
    assert labels_of({"objective": sim}, {"objective": sim | {"temperature": 0.5}}) == [
        "simclr (temperature=0.1)",
        "simclr (temperature=0.5)",
    ]


def test_a_mapping_by_epoch_is_labelled_as_it_is_configured() -> None:
    schedules = [{0: 256, 3: 32}, {0: 64}]
    settings = [{"train.epochs": 6, "planner.schedule": {"pool": pool}} for pool in schedules]
    assert labels_of(*settings) == ["pool={0: 256, 3: 32}", "pool={0: 64}"]
    shared = [{"planner.schedule": {"pool": pool}} for pool in ({0: 64, 3: 32}, {0: 64, 3: 96}, {0: 64})]
    assert labels_of(*shared) == ["pool={0: 64, 3: 32}", "pool={0: 64, 3: 96}", "pool={0: 64}"]
    sizes = [{"a.pool": 1, "planner.schedule": {"pool": {0: 1}}}, {"a.pool": 2, "planner.schedule": {"pool": {0: 2}}}]
    assert labels_of(*sizes) == ["a.pool=1, planner.schedule.pool={0: 1}", "a.pool=2, planner.schedule.pool={0: 2}"]


def test_labels_are_unique_and_qualify_ambiguous_keys() -> None:
    assert labels_of({"a.size": 1, "b.size": 1}, {"a.size": 2, "b.size": 3}) == [
        "a.size=1, b.size=1",
        "a.size=2, b.size=3",
    ]
    columns = [{"sampler": "shuffle", "objective": "simclr"}] * 2
    assert labels(columns) == ["shuffle #0", "shuffle #1"]
    assert labels([]) == []


def test_settings_of_label_unregistered_components() -> None:
    assert labels_of({"sampler": {"name": "gone", "z": 1}}, {"sampler": SHUFFLE}) == ["gone (z=1)", "shuffle"]


def test_swept_columns_group_blocks_without_repeats() -> None:
    both = {"sampler": SHUFFLE, "train.epochs": 1}, {"sampler": SPECTRAL, "train.epochs": 1}, {"seed": 3}
    trials = [trial(i, i, 0, SHUFFLE, 0.5, parameters=p) for i, p in enumerate(both)]
    assert swept_columns(study(trials)) == ["sampler.k", "sampler.temperature", "train.epochs"]
