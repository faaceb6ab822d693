"""cluster.yaml: the validator of Ray, and further checks."""

from __future__ import annotations

import copy
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from ..helpers import ROOT

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_yaml_passes_the_validator_of_ray():
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_cluster_yaml_has_the_versions_of_the_project():
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert CLUSTER["docker"]["image"].startswith(f"rayproject/ray:{constraints['ray']}-py311")
    (install,) = CLUSTER["setup_commands"]
    assert install == 'pip install -c /home/ray/mbcl/constraints.txt -e "/home/ray/mbcl[cluster,wandb]"'
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    requirements = {each.name: each for each in map(Requirement, extras["cluster"])}
    assert requirements["ray"].extras == {"default", "train", "tune"}
    assert requirements["ray"].specifier.contains(constraints["ray"])
    assert "boto3" in requirements


def test_head_node_trains_nothing_and_is_not_spot():
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "driver": 1000}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_worker_nodes_are_spot_gpus_within_the_cap():
    worker = CLUSTER["available_node_types"]["gpu_worker"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["resources"]["GPU"] == 1
    assert worker["resources"]["task"] == worker["resources"]["CPU"]
    assert 0 == worker["min_workers"] < worker["max_workers"] <= CLUSTER["max_workers"]
    for kind in CLUSTER["available_node_types"].values():
        assert {"InstanceType", "ImageId", "IamInstanceProfile"} <= set(kind["node_config"])
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False


def test_cluster_yaml_opens_no_public_port():
    start = " ".join(CLUSTER["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in str(CLUSTER)
    for command in (start, " ".join(CLUSTER["worker_start_ray_commands"])):
        assert "RAY_AUTH_MODE=token" in command
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"], "drivers, too"
    assert CLUSTER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert CLUSTER["auth"]["ssh_user"]


def test_security_groups_are_not_created_by_ray():
    """Ray adds SSH from everywhere to the rules of a group that it creates."""
    assert "security_group" not in CLUSTER["provider"]
    groups = [kind["node_config"]["SecurityGroupIds"] for kind in CLUSTER["available_node_types"].values()]
    assert len(groups) == 2
    assert all(len(ids) == 1 and ids == groups[0] for ids in groups), "one group, within which all is open"
    assert (ROOT / "cluster.yaml").read_text().count(groups[0][0]) == 2, "as docs/cluster.md says"


def test_security_groups_are_not_changed_by_ray():
    aws = pytest.importorskip("ray.autoscaler._private.aws.config", exc_type=ImportError)
    config = aws._configure_security_group(copy.deepcopy(CLUSTER))  # would fail if it called AWS, as there are no keys
    assert config["available_node_types"] == CLUSTER["available_node_types"]


def test_instance_profiles_let_only_the_head_start_machines():
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"] for name, kind in CLUSTER["available_node_types"].items()
    }
    assert profiles == {"head": {"Name": "mbcl-ray-head"}, "gpu_worker": {"Name": "mbcl-ray-worker"}}


def test_header_of_cluster_yaml_names_commands_that_work():
    lines = [line for line in (ROOT / "cluster.yaml").read_text().splitlines() if line.startswith("#   ray ")]
    text = "\n".join(lines)
    assert "ray get-auth-token --generate" in text
    submit = next(line for line in lines if "ray submit" in line)
    arguments = submit.split(" -- ")[1].split()
    # `ray submit` runs the script in the home folder.
    space = arguments[arguments.index("--space") + 1]
    assert space.startswith("/home/ray/mbcl/")
    assert (ROOT / space.removeprefix("/home/ray/mbcl/")).exists()
    assert "'cd mbcl && python run_ray.py" in text
