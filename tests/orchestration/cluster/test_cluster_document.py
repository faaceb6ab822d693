"""docs/cluster.md: its commands have options that exist, and Ray accepts its blocks."""

from __future__ import annotations

import json
import re
import shlex

import click
import pytest
import yaml

import run_ray
from mbcl.config.yaml_reader import parse_yaml
from mbcl.orchestration.search_space.schema import read_space

from ..helpers import ROOT

pytest.importorskip("ray")
TEXT = (ROOT / "docs" / "cluster.md").read_text()


def blocks(kind: str) -> list[str]:
    matches = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in matches if name == kind]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines() if line]
    lines += [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    inner = [shlex.split(word) for words in split for word in words if "run_ray.py" in word and " " in word]
    return split + inner


def study_lines() -> list[list[str]]:
    """The arguments of every `run_ray.py`."""
    arguments = [words[words.index("run_ray.py") + 1 :] for words in commands() if "run_ray.py" in words]
    return [[word for word in words if word != "&"] for words in arguments]


def test_cluster_document_study_commands_parse():
    lines = study_lines()
    assert len(lines) == 6
    for line in lines:
        options = run_ray.parser().parse_args(line)
        read_space(ROOT / options.space, options.overrides)


def ray_commands() -> list[list[str]]:
    starts = [words[words.index("ray") :] for words in commands() if "ray" in words[:2]]
    words = [words[: words.index("--")] if "--" in words else words for words in starts]
    inline = re.findall(r"`(ray (?:up|down|exec|attach|rsync-up|get-auth-token|dashboard|status)[^`]*)`", TEXT)
    return [*words, *(shlex.split(line) for line in inline)]


def test_cluster_document_ray_commands_exist():
    from ray.scripts.scripts import cli

    lines = ray_commands()
    assert {words[1] for words in lines} >= {"up", "exec", "attach", "dashboard", "down", "job", "symmetric-run"}
    for words in lines:
        command: click.Command = cli
        rest = words[1:]
        while isinstance(command, click.Group):
            inner = command.get_command(click.Context(command), rest[0])
            assert inner is not None, words
            command, rest = inner, rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        if words[1] == "symmetric-run":
            known |= {option for parameter in cli.commands["start"].params for option in parameter.opts}
        options = {word.split("=")[0] for word in rest if word.startswith("-") and len(word) > 1}
        assert options <= known, words


def test_gcp_block_is_a_valid_cluster_config():
    util = pytest.importorskip("ray.autoscaler._private.util")
    (block,) = blocks("yaml")
    config = {**yaml.safe_load((ROOT / "cluster.yaml").read_text()), **parse_yaml(block, "docs/cluster.md")}
    util.validate_config(util.prepare_config(config))
    worker, head = config["available_node_types"]["gpu_worker"], config["available_node_types"]["head"]
    assert {"preemptible": True} in worker["node_config"]["scheduling"]
    assert "scheduling" not in head["node_config"]
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert {name: kind["resources"] for name, kind in aws.items()} == {
        name: kind["resources"] for name, kind in config["available_node_types"].items()
    }


def test_gcp_block_watches_for_preemption_notices_of_gcp():
    """All other start commands of the workers equal those for AWS."""
    (block,) = blocks("yaml")
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())["worker_start_ray_commands"]
    gcp = parse_yaml(block, "docs/cluster.md")["worker_start_ray_commands"]
    assert sum("mbcl.orchestration.spot aws " in command for command in aws) == 1
    assert gcp == [command.replace("orchestration.spot aws ", "orchestration.spot gcp ") for command in aws]


def test_iam_policy_of_the_head_allows_the_autoscaler():
    bucket, head = (json.loads(block)["Statement"] for block in blocks("json"))
    assert all(action.startswith("s3:") for statement in bucket for action in statement["Action"])
    allowed = {action: statement for statement in head for action in [statement["Action"]] if isinstance(action, str)}
    others = [action for statement in head for action in statement["Action"] if isinstance(statement["Action"], list)]
    # The calls of the AWS node provider of Ray, and the permissions to start a machine with a profile.
    assert set(others) == {"ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"}
    assert set(allowed) == {"ec2:TerminateInstances", "iam:PassRole"}
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    tag = {"aws:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
    assert allowed["ec2:TerminateInstances"]["Condition"] == {"StringEquals": tag}
    worker = cluster["available_node_types"]["gpu_worker"]["node_config"]["IamInstanceProfile"]["Name"]
    assert allowed["iam:PassRole"]["Resource"].endswith(f":role/{worker}")


def test_security_group_is_created_before_the_cluster():
    rules = [line for line in blocks("")[0].splitlines() if "authorize-security-group-ingress" in line]
    assert [line.split("--protocol ")[1] for line in rules] == [
        "tcp --port 22 --cidr YOUR-ADDRESS/32",
        "all --source-group $GROUP",
    ]
    assert TEXT.index("create-security-group") < TEXT.index("ray up -y cluster.yaml")
    assert "0.0.0.0" not in TEXT


def test_docker_image_is_that_of_cluster_yaml():
    image = re.search(r"FROM (\S+)", TEXT)
    assert image is not None
    assert image[1] == yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"]
