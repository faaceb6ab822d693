"""Configuration: every error is one line with the key, the found and the allowed value; YAML, overrides, schedules."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mbcl.config.base import apply_overrides, set_path, validate
from mbcl.config.experiment import Experiment, read_experiment
from mbcl.config.yaml_reader import dump_yaml, parse_yaml, read_yaml
from mbcl.errors import ConfigError


def scheduled(sampler=None, embeddings=None, **schedule):
    """An experiment whose planner has a schedule."""
    sampler = sampler or {"name": "spectral", "k": 4}
    return {"sampler": sampler, "embeddings": embeddings or {}, "planner": {"schedule": schedule}}


WRONG = [
    ({"sampelr": {}}, "x: sampelr: unknown key; did you mean 'sampler'?"),
    ({"train": {"epoch": 3}}, "x: train.epoch: unknown key; did you mean 'epochs'?"),
    ({"train": {"epochs": "3"}}, "x: train.epochs: Input should be a valid integer, found '3'"),
    ({"train": {"epochs": 0}}, "x: train.epochs: Input should be greater than or equal to 1, found 0"),
    ({"train": {"epochs": True}}, "x: train.epochs: Input should be a valid integer, found True"),
    ({"train": 5}, "x: train: "),
    ({"seed": -1}, "x: seed: "),
    ({"data": {"name": "digit"}}, "x: data: unknown data set 'digit'; did you mean 'digits'?"),
    ({"data": {"validation": 1.5}}, "x: data.validation: "),
    ({"sampler": ["spectral"]}, "x: sampler: expected a block with a name"),
    ({"sampler": {"k": 3}}, "x: sampler: expected a block with a name"),
    ({"sampler": {"name": "spectrl"}}, "x: sampler: unknown sampler 'spectrl'; did you mean 'spectral'?"),
    ({"sampler": {"name": "spectral", "kk": 3}}, "x: sampler.kk: unknown key; did you mean 'k'?"),
    ({"sampler": {"name": "spectral", "k": "many"}}, "x: sampler.k: Input should be a valid integer, found 'many'"),
    ({"sampler": {"name": "osgd", "k": 4, "q": 5}}, "x: sampler: q must be at most k, found q = 5 and k = 4"),
    ({"objective": {"name": "simclr", "temperature": 0}}, "x: objective: temperature must be > 0, found 0"),
    ({"objective": {"name": "simklr"}}, "x: objective: unknown objective 'simklr'; did you mean 'simclr'?"),
    ({"optimizer": {"name": "lars", "lr": -1}}, "x: optimizer: lr must be >= 0, found -1"),
    ({"optimizer": {"name": "lars", "lr": float("nan")}}, "x: optimizer.lr: "),
    ({"encoder": {"name": "resnet81"}}, "x: encoder: unknown encoder 'resnet81'; did you mean 'resnet18'?"),
    ({"encoder": {"name": "resnet_small", "widths": "wide"}}, "x: encoder.widths: "),
    ({"track": ["tensorbord"]}, "x: track.0: Input should be 'tensorboard' or 'wandb', found 'tensorbord'"),
    ({"evaluation": {"metrics": ["accuracy"]}}, "x: evaluation.metrics.0: "),
    ({"embeddings": {"refresh": "step"}}, "x: embeddings.refresh: Input should be 'round' or 'epoch', found 'step'"),
    ({"planner": {"overlap": 2}}, "x: planner.overlap: Input should be 0 or 1, found 2"),
    ({"planner": {"every": 0}}, "x: planner.every: Input should be greater than or equal to 1, found 0"),
    ({"planner": {"warmup_epochs": -1}}, "x: planner.warmup_epochs: "),
    (scheduled(temperature={0: 1}), "x: planner.schedule.temperature: unknown key; known: k, mix, pool, quantile"),
    (scheduled(mix=0.5), "x: planner.schedule.mix: expected values by epoch, such as {0: 0.5, 20: 0.0}, found 0.5"),
    (scheduled(mix={-1: 0.5}), "x: planner.schedule.mix: found the epoch -1, allowed are whole numbers from 0"),
    (scheduled(mix={True: 0.5}), "x: planner.schedule.mix: found the epoch True, "),
    (scheduled(mix={1: 0.5, "1": 0.6}), "x: planner.schedule.mix: epoch 1 is given twice"),
    (scheduled(mix={0: 0.5, 20: 2.0}), "x: planner.schedule.mix.20: mix must be >= 0 and <= 1, found 2.0"),
    (scheduled(k={5: "many"}), "x: planner.schedule.k.5: Input should be a valid integer, found 'many'"),
    (scheduled(k={5: 0}), "x: planner.schedule.k.5: k must be"),
    (scheduled(pool={0: None, 50: -5}, sampler={"name": "kmeans"}), "x: planner.schedule.pool.50: "),
    (scheduled(k={5: 4}, sampler={"name": "osgd"}), "x: planner.schedule.k.5: q must be at most k, found q = 150"),
    (
        scheduled(k={0: 4, 5: 8}, sampler={"name": "osgd", "q": 4}, embeddings={"source": "cached"}),
        "x: embeddings.source: found cached, but osgd trains on a part of the samples",
    ),
    ({"evaluation": {"metrics": []}}, "x: evaluation.metrics: "),
]


@pytest.mark.parametrize(("content", "expected"), WRONG, ids=[expected[3:50] for _, expected in WRONG])
def test_validate_reports_every_mistake_in_one_line(content, expected):
    with pytest.raises(ConfigError) as caught:
        validate(Experiment, content, "x")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_validate_counts_several_mistakes():
    with pytest.raises(ConfigError, match=r"unknown key.*\(and 1 more\)"):
        validate(Experiment, {"train": {"epochs": "x", "epoch": 1}}, "x")


def test_validate_resolves_aliases_and_defaults():
    experiment = validate(Experiment, {"sampler": {"name": "sc_even_kb_loose"}, "objective": {"name": "sim"}}, "x")
    shared = {"mix": 0.0, "skip": 0, "relative_margin": None, "absolute_margin": None}
    communities = {"community": None, "order": "random"}
    assert experiment.sampler == {"name": "spectral", "k": 40, "temperature": 0.1, **shared, **communities}
    assert experiment.objective == {"name": "simclr", "temperature": 0.1}
    assert experiment.encoder["widths"] == [16, 32, 64]


def test_schedule_is_a_step_function_and_round_trips_through_json():
    pool = "{pool: {10: 320, 0: 1280, 3: null}, mix: {2: 0.5}}"
    content = {"sampler": {"name": "kmeans", "pool": 640}, "planner": {"schedule": parse_yaml(pool, "y")}}
    experiment = validate(Experiment, content, "x")
    again = validate(Experiment, json.loads(json.dumps(experiment.model_dump(mode="json"))), "x")
    assert again == experiment
    assert again.digest == experiment.digest
    used = [(sampler.pool, sampler.mix) for sampler in map(again.build_sampler, (0, 2, 3, 9, 10, 500))]
    assert used == [(1280, 0.0), (1280, 0.5), (None, 0.5), (None, 0.5), (320, 0.5), (320, 0.5)]
    assert {epoch: s.pool for epoch, s in again.samplers().items()} == {0: 1280, 2: 1280, 3: None, 10: 320}
    late = validate(Experiment, content | {"planner": {"schedule": {"pool": {5: 1280}}, "warmup_epochs": 7}}, "x")
    assert late.build_sampler(4).pool == 640, "the sampler's own value before the first step"
    assert list(late.samplers()) == [7], "steps within the warm-up are not used"


def test_unused_planning_names_parameters_that_a_sampler_lacks():
    """A grid has one ``planner`` block, so parameters that a sampler lacks give a message, not an error."""
    for sampler, parts in (
        ({"name": "shuffle"}, []),
        ({"name": "kmeans"}, []),
        ({"name": "spectral"}, ["sampler 'spectral' has no parameter 'pool'", "it can schedule: k, mix"]),
    ):
        experiment = validate(Experiment, scheduled(sampler, mix={0: 0.5}, pool={1: 64}), "x")
        lines = experiment.unused_planning()
        assert len(lines) == bool(parts)
        assert all(part in lines[0] for part in parts)
        assert experiment.build_sampler(1).batch_size == 32


def test_digest_depends_on_the_resolved_configuration_and_seed():
    short = validate(Experiment, {"sampler": {"name": "sc_even"}}, "x")
    long = validate(Experiment, {"sampler": {"name": "spectral", "k": 40, "temperature": 0.1}}, "x")
    other = validate(Experiment, {"sampler": {"name": "spectral", "k": 40}, "seed": 1}, "x")
    assert short.digest == long.digest != other.digest


def test_experiment_round_trips_through_model_dump():
    experiment = validate(Experiment, {"sampler": {"name": "osgd", "k": 4, "q": 2}, "seed": 3}, "x")
    assert validate(Experiment, experiment.model_dump(mode="json"), "x") == experiment


@given(st.text(max_size=80))
def test_parse_yaml_reads_any_text_or_raises_one_line(text):
    message = ""
    try:
        parse_yaml(text, "x")
    except ConfigError as error:
        message = str(error)
    assert message == "" or (message.startswith("x") and "\n" not in message)


@pytest.mark.parametrize("text", ["2024-13-45", "[" * 3000, "0x" + "f" * 5, "1:99999999999999999999", "&a [*a]"])
def test_parse_yaml_reads_odd_values_or_raises_one_line(text):
    message = ""
    try:
        parse_yaml(text, "x")
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
    assert (message != "") == (text.startswith(("[", "&")))


def test_build_sampler_gives_osgd_the_trained_objective():
    content = {
        "sampler": {"name": "osgd", "k": 4, "q": 2, "score": "objective"},
        "objective": {"name": "clip", "temperature": 0.5},
    }
    sampler = validate(Experiment, content, "x").build_sampler()
    sampler.check(1000)
    assert sampler.objective.temperature == 0.5


def test_parse_yaml_refuses_code_and_duplicate_keys():
    with pytest.raises(ConfigError, match="not YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "x")
    with pytest.raises(ConfigError, match=r"x, line 2: not YAML: key 'a' is given twice"):
        parse_yaml("a: 1\na: 2", "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"- 1", "found list, expected a mapping of keys"),
        (b"1: 2", "expected a mapping of keys"),
        (b"a: [", "not YAML"),
        ("a: é".encode("utf-16"), "cannot be read: it is UTF-16 or UTF-32; expected UTF-8"),
        ("a: é".encode("utf-16-be"), "cannot be read: it is UTF-16 or UTF-32; expected UTF-8"),
        ("b: 1\na: é".encode("latin-1"), "line 2: cannot be read: byte 0xe9 is not UTF-8; in Latin-1 .* it is 'é'"),
        (b"\x00\x01\x02", "cannot be read: it is a binary file, no text"),
        (b"a: \x07", "not YAML"),
    ],
)
def test_read_yaml_refuses_files_that_are_no_mapping(tmp_path, content, expected):
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0e1", 10.0),
        ("-.5E2", -50.0),
        ("1.", 1.0),
        ("0o17", 15),
        ("0x1F", 31),
        ("0", 0),
        ("-7", -7),
        ("-.inf", -math.inf),
        ("True", True),
        ("~", None),
        ("y", "y"),
        ("2020-01-31", "2020-01-31"),
        ("00:30", "00:30"),
        ("'010'", "010"),
        ("'no'", "no"),
    ],
)
def test_parse_yaml_reads_the_scalars_of_yaml_1_2(text, value):
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("010", "8 in YAML 1.1 and 10 in 1.2; write 10, 0o10 for the octal number, or '010' for text"),
        ("-010", "-8 in YAML 1.1 and -10 in 1.2; write -10, or"),
        ("089", "text in YAML 1.1 and 89 in 1.2; write 89, or"),
        ("1:30", "90 in YAML 1.1 and text in 1.2; write 90, or '1:30' for the text"),
        ("-1:30.5", "-90.5 in YAML 1.1"),
        ("1_000", "1000 in YAML 1.1"),
        ("0b11", "3 in YAML 1.1"),
        ("-0x1F", "-31 in YAML 1.1"),
        ("yes", "true in YAML 1.1 and text in 1.2; write true, or 'yes' for the text"),
        ("OFF", "false in YAML 1.1"),
    ],
)
@pytest.mark.parametrize("line", ["a: {}", "a: [{}]", "{}: a"])
def test_parse_yaml_refuses_what_the_versions_read_differently(text, meant, line):
    """PyYAML alone reads ``line`` as YAML 1.1 does, and as text where a user of 1.2 means a number."""
    with pytest.raises(ConfigError) as caught:
        parse_yaml("b: 1\n" + line.format(text), "x")
    assert str(caught.value).startswith(f"x, line 2: {text} is {meant}")


@pytest.mark.parametrize("text", ["!!int 010", "!!int ''", "!!int 1:30", "!!bool yes", "!!float x", "!!timestamp x"])
def test_parse_yaml_refuses_a_tag_that_the_text_does_not_fit(text):
    """PyYAML alone reads some as YAML 1.1 does, and fails within its constructors at others."""
    with pytest.raises(ConfigError, match="x, line 2: not YAML: .* has the tag !!"):
        parse_yaml(f"b: 1\na: {text}", "x")


def test_parse_yaml_reads_tags():
    text = "[!!int 0o17, !!float 3, !!float 1e-4, !!str 010, !!bool true, !!null '']"
    assert parse_yaml(text, "x") == [15, 3.0, 1e-4, "010", True, None]


@pytest.mark.parametrize("text", ["{1: a, 1: b}", "{1: a, 1.0: b}", "{true: a, true: b}", "{null: a, ~: b}"])
def test_parse_yaml_refuses_duplicate_keys_that_are_no_words(text):
    with pytest.raises(ConfigError, match="is given twice"):
        parse_yaml(f"mix: {text}", "x")


def test_what_dump_yaml_writes_is_read_as_the_same():
    """Also by PyYAML as YAML 1.1."""
    words = ["1e5", "0o17", "010", "no", "1:30", "1_0", "2020-01-31", "", "~", "a: b", "#", "<<", "=", "é", "0x1"]
    content = {"numbers": [1e-5, 1e20, -0.0, 3, True, None], "words": words, **{word: 1 for word in words}}
    text = dump_yaml(content)
    assert parse_yaml(text, "x") == yaml.safe_load(text) == content


def test_parse_yaml_supports_merge_keys():
    text = "base: &base {epochs: 3, batch_size: 16}\ntrain: {<<: *base, batch_size: 32}"
    assert parse_yaml(text, "x")["train"] == {"epochs": 3, "batch_size": 32}


def test_read_yaml_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")


def test_apply_overrides_creates_missing_blocks():
    content = {"train": {"epochs": 3}}
    apply_overrides(content, ["train.epochs=2", "sampler={name: spectral, k: 4}", "a.b.c=x", "seeds=[0, 1]", "d="])
    assert content == {
        "train": {"epochs": 2},
        "sampler": {"name": "spectral", "k": 4},
        "a": {"b": {"c": "x"}},
        "seeds": [0, 1],
        "d": None,
    }


@pytest.mark.parametrize("override", ["train.epochs", "=3", "a..b=1", ".a=1", "train.epochs=[", "name.x=1"])
def test_apply_overrides_refuses_bad_overrides(override):
    with pytest.raises(ConfigError):
        apply_overrides({"name": "samplers"}, [override])


def test_set_path_refuses_a_path_through_a_value():
    with pytest.raises(ConfigError, match=r"a\.b\.c: a\.b is 3, not a block that could hold 'c'"):
        set_path({"a": {"b": 3}}, "a.b.c", 1)


def test_read_experiment_takes_a_space_file_or_its_block(tmp_path):
    (tmp_path / "space.yaml").write_text("name: s\nexperiment: {seed: 3}\n")
    (tmp_path / "block.yaml").write_text("seed: 3\n")
    (tmp_path / "wrong.yaml").write_text("experiment: 3\n")
    (tmp_path / "stored.yaml").write_text("given: {}\nresolved: {experiment: {seed: 3}}\n")
    assert read_experiment(str(tmp_path / "space.yaml")) == read_experiment(str(tmp_path / "block.yaml")) == {"seed": 3}
    assert read_experiment(str(tmp_path / "stored.yaml")) == {"seed": 3}
    with pytest.raises(ConfigError, match="experiment: found int, expected a block"):
        read_experiment(str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize("text, number", [("1e-4", 1e-4), ("-2E5", -2e5), ("1.0e-4", 1e-4), ("3", 3)])
def test_parse_yaml_reads_exponents_without_a_point(text, number):
    assert parse_yaml(f"x: {text}", "test") == {"x": number}


def test_parse_yaml_keeps_strings_that_resemble_numbers():
    assert parse_yaml("[1e, e4, 0-abc1e4, 1e-4x]", "test") == ["1e", "e4", "0-abc1e4", "1e-4x"]


def test_unused_planning_names_epochs_that_never_come():
    short = {"sampler": {"name": "spectral", "k": 4}, "train": {"epochs": 3}}
    for planner, text in (
        ({"warmup_epochs": 2}, None),
        ({"warmup_epochs": 3}, "planner.warmup_epochs 3 leaves none of the 3 epochs"),
        ({"schedule": {"k": {50: 2}}}, "planner.schedule.k.50: there are 3 epochs, 0 to 2"),
    ):
        lines = validate(Experiment, {**short, "planner": planner}, "x").unused_planning()
        assert len(lines) == (text is not None)
        assert text is None or text in lines[0]
    assert validate(Experiment, {"planner": {"warmup_epochs": 99}}, "x").unused_planning() == [], (
        "shuffle makes no plan from embeddings"
    )


def test_samplers_apply_a_step_at_the_next_planned_epoch():
    planner = {"warmup_epochs": 1, "every": 3, "schedule": {"k": {2: 8, 3: 2, 5: 3, 9: 5}}}
    content = {"sampler": {"name": "spectral", "k": 4}, "train": {"epochs": 10}, "planner": planner}
    experiment = validate(Experiment, content, "x")
    planned = {epoch for epoch in range(10) if experiment.planner.planned_in(epoch) == epoch}
    assert planned == {1, 4, 7}
    assert {epoch: sampler.k for epoch, sampler in experiment.samplers().items()} == {1: 4, 4: 2, 7: 3}


def test_validate_names_the_wrong_key():
    content = {"sampler": {"name": "osgd", "k": 4, "q": 3}, "planner": {"schedule": {"k": {0: 2}}}}
    with pytest.raises(ConfigError, match=r"planner\.schedule\.k\.0: q must be at most k, found q = 3 and k = 2"):
        validate(Experiment, content, "x")
