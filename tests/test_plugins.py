"""Components in files of the user and in installed packages, in every process that needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from plugin_file import EXPERIMENT, PLUGIN

from mbcl.config.experiment import add_plugins
from mbcl.errors import ConfigError
from mbcl.plugins import load_plugins, loaded, record_of
from mbcl.registry import Registry

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """Undo what loading adds to the path of imports."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "my_parts.py"
    file.write_text(PLUGIN)
    return file


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of the user."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, env=environment)


def mbcl(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "mbcl", *command, cwd=cwd)


def test_training_with_a_plugin_is_evaluated_with_it(plugin, tmp_path):
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"plugins": ["my_parts.py"], **EXPERIMENT}))
    trained = mbcl("train", "--config", "experiment.yaml", "--out", "out", "--quiet", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    evaluate = ("evaluate", "--checkpoint", "out")
    refused = mbcl(*evaluate, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {tmp_path}/out: its checkpoint: plugins: my_parts.py is not loaded; add --plugin my_parts.py\n"
    )
    evaluated = mbcl(*evaluate, "--plugin", "my_parts.py", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "retrieval/u2v/top1" in json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    plugin.write_text(PLUGIN + "\n")
    changed = mbcl(*evaluate, "--plugin", "my_parts.py", cwd=tmp_path)
    assert changed.returncode == 2
    assert "plugins: my_parts.py has changed since it was used here" in changed.stderr


def test_plugin_of_the_command_line_is_listed_explained_and_plans(plugin, tmp_path):
    listed = mbcl("list", "--plugin", "my_parts.py", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for line in ("  by_norm(", "  mine(temperature=0.1)", "  linear(width=8, weights=None)", "  negatives"):
        assert f"\n{line}" in listed.stdout
    assert "groups=4)" in listed.stdout
    assert "batches a pool" in mbcl("explain", "by_norm", "--plugin", "my_parts.py", cwd=tmp_path).stdout
    unknown = mbcl("explain", "by_norm", cwd=tmp_path)
    assert unknown.returncode == 2


@pytest.mark.dist
def test_background_planner_knows_the_plugin(plugin, tmp_path):
    content = {**EXPERIMENT, "planner": {"overlap": 1}, "train": {"epochs": 3, "batch_size": 16}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    options = ("--config", "experiment.yaml", "--out", "out", "--quiet", "--plugin", "my_parts.py")
    trained = mbcl("train", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["plan/age"] for row in rows] == [0, 1, 1]
    assert "note" not in trained.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_study_with_a_plugin(plugin, tmp_path, workers):
    """The driver trains with one worker, worker groups with two; plan tasks and evaluations are other processes."""
    (tmp_path / "parts").mkdir()
    plugin = plugin.rename(tmp_path / "parts" / plugin.name)  # no folder in which Ray's processes look for modules
    space = {
        "plugins": ["parts/my_parts.py"],
        "seeds": [0],
        "experiment": {key: block for key, block in EXPERIMENT.items() if key != "sampler"},
        "space": {"sampler": {"grid": [{"name": "shuffle"}, {"name": "by_norm", "groups": 2}][workers - 1 :]}},
        "resources": {"workers": workers},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    study = run(str(ROOT / "run_ray.py"), "--space", "space.yaml", cwd=tmp_path)
    assert study.returncode == 0, study.stdout + study.stderr
    record = json.loads((tmp_path / "results" / "space" / "study.json").read_text())
    assert {trial["status"] for trial in record["trials"].values()} == {"finished"}
    assert "by_norm" in (tmp_path / "results" / "space" / "report.html").read_text()
    if workers == 1:
        plugin.write_text(PLUGIN + "\n")
        resumed = run(str(ROOT / "run_ray.py"), "--space", "space.yaml", "--resume", cwd=tmp_path)
        assert resumed.returncode == 2, "a changed plugin makes another study"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.py", "x = 1\nraise ValueError('no\\nway')", "broken.py, line 2: ValueError: no way"),
        ("syntax_error.py", "x = (", "SyntaxError"),
        ("ends.py", "import sys\n\nsys.exit()\n", "ends.py, line 3: SystemExit: no reason given"),
        ("json.py", "", "the name json is taken by"),
        ("__main__.py", "", "the name __main__ is taken by"),
        ("my-file.py", "", "expected a Python file, whose name can be imported"),
        ("text.txt", "", "expected a Python file, whose name can be imported"),
        (
            "second_shuffle.py",
            "from mbcl.samplers import SAMPLERS\n\n\n@SAMPLERS.register('shuffle')\nclass Mine: ...\n",
            "line 4: ConfigError: sampler 'shuffle' is registered twice",
        ),
    ],
)
def test_plugin_that_cannot_be_loaded_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="^plugins: ") as error:
        load_plugins([str(tmp_path / name)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert Path(name).stem not in {plugin.path.stem for plugin in loaded()}


@pytest.mark.parametrize(
    "files", ["a.py", {"a": 1}, [1], [{"sha256": "0"}], [{"file": __file__, "sha": "0"}], ["no_such_file.py"], None]
)
def test_plugins_that_are_no_files_are_refused(files):
    with pytest.raises(ConfigError, match="^plugins: "):
        load_plugins(files)


def test_plugin_may_be_a_link_to_a_file_of_another_name(tmp_path):
    (tmp_path / "version_2.py").write_text("")
    (tmp_path / "linked_parts.py").symlink_to("version_2.py")
    load_plugins([str(tmp_path / "linked_parts.py")])
    assert tmp_path / "linked_parts.py" in [plugin.path for plugin in loaded()]


def test_file_of_the_source_s_folder_is_loaded_by_its_digest_alone(tmp_path, monkeypatch):
    """A node of a cluster has its copies there; another file of the name must not run instead of a missing one."""
    monkeypatch.setattr("mbcl.plugins.SHIPPED", tmp_path)
    file = tmp_path / "only_shipped.py"
    file.write_text("")
    with pytest.raises(ConfigError, match="elsewhere/only_shipped.py: no such file"):
        load_plugins(["elsewhere/only_shipped.py"])
    load_plugins([{"file": "elsewhere/only_shipped.py", "sha256": sha256(file.read_bytes()).hexdigest()}])
    assert file in [plugin.path for plugin in loaded()]


def test_plugin_is_loaded_once_and_another_of_its_name_is_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "only_once.py").write_text(f"NAME = '{folder}'")
    one, two = (str(tmp_path / folder / "only_once.py") for folder in ("one", "two"))
    load_plugins([one])
    load_plugins([one, record_of(one)])
    assert [plugin.path.stem for plugin in loaded()].count("only_once") == 1
    with pytest.raises(ConfigError, match="which has this name, too, is loaded already"):
        load_plugins([two])
    with pytest.raises(ConfigError, match="differs from the file that the experiment began with"):
        load_plugins([{"file": one, "sha256": "0" * 64}])


def test_plugin_of_the_command_line_that_the_experiment_records_is_added_once(plugin):
    file, other = (str(plugin.with_name(f"{name}.py")) for name in ("added_once", "added_too"))
    for path in (file, other):
        Path(path).write_text("")
    load_plugins([file])
    for given in (file, record_of(file)):
        content = {"plugins": [given]}
        add_plugins(content, [f"{plugin.parent}/./added_once.py", other, other])
        assert content["plugins"] == [given, other]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as pip installs it, with entry points."""
    (tmp_path / "fruit_shop.py").write_text("class Apple:\n    '''A fruit.'''\n")
    info = tmp_path / "fruit_shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fruit-shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mbcl.fruits]\napple = fruit_shop:Apple\npear = fruit_shop:Pear\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_installed_package_adds_components_by_entry_points(package):
    fruits: Registry[type] = Registry("fruit", "mbcl.fruits")

    @fruits.register("cherry")
    class Cherry: ...

    assert list(fruits) == ["cherry", "apple", "pear"]
    assert len(fruits) == 3
    assert fruits["apple"].__doc__ == "A fruit."
    assert fruits.canonical("apple") == "apple"
    with pytest.raises(ConfigError, match="fruit 'pear' of the package fruit-shop cannot be loaded: AttributeError"):
        fruits["pear"]
    with pytest.raises(ConfigError, match="unknown fruit 'aple'; did you mean 'apple'"):
        fruits["aple"]
    assert list(Registry("fruit")) == []


def test_name_that_two_packages_have_is_refused_at_its_use(package, tmp_path):
    other = tmp_path / "fruit_stall-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: fruit-stall\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[mbcl.fruits]\napple = fruit_stall:Apple\n")
    fruits: Registry[type] = Registry("fruit", "mbcl.fruits")
    assert list(fruits) == ["apple", "pear"]
    with pytest.raises(ConfigError, match="'apple' is one of several packages: fruit_shop:Apple, fruit_stall:Apple"):
        fruits["apple"]
