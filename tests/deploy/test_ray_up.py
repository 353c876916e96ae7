"""Ray's own validator takes the files for `ray up`, and `ray start` knows all options in them."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from click.exceptions import ClickException
from deployed import DEPLOY, ray_starts, refuses_each_misspelt_key
from ray.autoscaler._private.util import prepare_config, validate_config

FILES = ("on_premise.yaml", "aws.yaml")
MACHINE = {
    "type": "object",
    "properties": {
        "InstanceType": {"type": "string"},
        "ImageId": {"type": "string"},
        "BlockDeviceMappings": {
            "type": "array",
            "items": {
                "properties": {
                    "DeviceName": {"type": "string"},
                    "Ebs": {
                        "properties": {
                            "VolumeSize": {"type": "integer"},
                            "VolumeType": {"enum": ["gp3"]},
                        },
                        "additionalProperties": False,
                        "required": ["VolumeSize", "VolumeType"],
                    },
                },
                "additionalProperties": False,
                "required": ["DeviceName", "Ebs"],
            },
        },
    },
    "additionalProperties": False,
    "required": ["InstanceType", "ImageId", "BlockDeviceMappings"],
}
# Ray lets any key pass here, and hands it to a cloud or ignores it.
PROVIDERS = {
    "local": ["type", "head_ip", "worker_ips"],
    "aws": ["type", "region", "availability_zone", "cache_stopped_nodes"],
}
AUTH = {"local": ["ssh_user", "ssh_private_key"], "aws": ["ssh_user"]}
# What a file that Ray would fill with defaults has to say itself.
SAID = {
    "setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "file_mounts",
    "cluster_synced_files", "rsync_exclude",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray" / name).read_text())


def check(config: dict[str, Any]) -> dict[str, Any]:
    assert config.keys() >= SAID
    validate_config(config)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    kind = config["provider"]["type"]
    assert sorted(config["provider"]) == sorted(PROVIDERS[kind])
    assert sorted(config["auth"]) == sorted(AUTH[kind])
    for node_type in config.get("available_node_types", {}).values():
        jsonschema.validate(node_type["node_config"], MACHINE)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file_and_no_misspelt_key(name: str) -> None:
    errors = (jsonschema.ValidationError, ValueError, AssertionError, KeyError, ClickException)
    made_up = {"file_mounts", "available_node_types"}
    assert refuses_each_misspelt_key(check, load(name), errors, made_up) > 10


def test_all_given_machines_are_in_the_cluster():
    config = load("on_premise.yaml")
    [node_type] = check(config)["available_node_types"].values()
    workers = len(config["provider"]["worker_ips"])
    assert (node_type["min_workers"], node_type["max_workers"]) == (workers, workers)


@pytest.mark.parametrize("name", FILES)
def test_servers_start_with_a_token_that_every_machine_gets(name: str) -> None:
    config = load(name)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    head, worker = ray_starts(commands)
    assert (head["head"], worker["head"]) == (True, False)
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert all("RAY_AUTH_MODE=token" in each for each in commands if "ray start" in each)
    user = config["auth"]["ssh_user"]
    assert config["file_mounts"][f"/home/{user}/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in each for each in config["setup_commands"])
    assert any("deploy/setup.sh gpu" in each for each in config["setup_commands"])


def test_a_misspelt_option_of_ray_start_is_refused():
    with pytest.raises(ClickException, match="--prot"):
        ray_starts(["ulimit -n 1; A=b ~/x/ray start --head --prot=6379"])
