"""The Kubernetes files, offline: core kinds and pod templates by Kubernetes' own schemas, KubeRay's
kinds by a strict schema of the fields that the files use.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deployed import DEPLOY, RAY_VERSION, configured_by, ray_command, refuses_each_misspelt_key

KUBERNETES = "1.33"
FREE = {"labels", "annotations", "matchLabels", "limits", "requests"}


def strict(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": sorted(required),
        "additionalProperties": False,
    }


TEXT, COUNT, YES_OR_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
PARAMS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": PARAMS, "template": {"type": "object"}}
CLUSTER = strict(
    {
        "rayVersion": {"const": RAY_VERSION},
        "authOptions": strict({"mode": {"enum": ["token", "disabled"]}, "secretName": TEXT}),
        "headGroupSpec": strict(GROUP),
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": strict(
                GROUP
                | {"groupName": TEXT}
                | dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT)
            ),
        },
    }
)
JOB = strict(
    {
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "entrypoint": TEXT,
        "backoffLimit": COUNT,
        "preRunningDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": YES_OR_NO,
        "ttlSecondsAfterFinished": COUNT,
        "submitterPodTemplate": {"type": "object"},
        "rayClusterSpec": CLUSTER,
    }
)


def whole(kind: str, spec: dict[str, Any]) -> jsonschema.Draft202012Validator:
    names = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    return jsonschema.Draft202012Validator(
        strict(names | {"metadata": strict({"name": TEXT}), "spec": spec})
    )


SPECS = {"RayJob": whole("RayJob", JOB), "RayCluster": whole("RayCluster", CLUSTER)}
REFUSALS = (jsonschema.ValidationError, kubernetes_validate.ValidationError, KeyError)


@pytest.fixture(autouse=True, scope="module")
def _schemas_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", read)
        yield


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))


def core(resource: dict[str, Any]) -> None:
    _core(json.dumps(resource))


@functools.cache
def _core(resource: str) -> None:
    kubernetes_validate.validate(json.loads(resource), KUBERNETES, strict=True)


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    return resource["spec"]["rayClusterSpec"] if resource["kind"] == "RayJob" else resource["spec"]


def groups(resource: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(resource)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def templates(resource: dict[str, Any]) -> list[dict[str, Any]]:
    found = [group["template"] for group in groups(resource)]
    return found + [resource["spec"][k] for k in ("submitterPodTemplate",) if k in resource["spec"]]


def check(resource: dict[str, Any]) -> None:
    """Refuse what KubeRay's strict schema or Kubernetes would refuse."""
    SPECS[resource["kind"]].validate(resource)
    for template in templates(resource):
        core({"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def run_of(resource: dict[str, Any]) -> Any:
    return configured_by(resource["spec"]["entrypoint"])


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_the_schemas_take_the_file_and_no_misspelt_key(name: str) -> None:
    [resource] = load(name)
    made_up = FREE | {"rayStartParams"}  # options of `ray start`, see below
    assert refuses_each_misspelt_key(check, resource, REFUSALS, made_up) > 40


def test_the_schemas_take_volume_and_network_policy_and_no_misspelt_key():
    for resource in load("storage_and_network.yaml"):
        errors = (*REFUSALS, kubernetes_validate.SchemaNotFoundError)
        refuses_each_misspelt_key(core, resource, errors, FREE)


@pytest.mark.parametrize(
    ("key", "value"), [("replicas", "1"), ("rayStartParams", {"num-cpus": 2}), ("groupName", None)]
)
def test_a_value_of_another_type_is_refused(key, value):
    [resource] = load("rayjob.yaml")
    cluster_of(resource)["workerGroupSpecs"][0][key] = value
    with pytest.raises(jsonschema.ValidationError):
        check(resource)


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_parts_of_the_files_belong_together(name: str) -> None:
    [resource] = load(name)
    volume, policy = load("storage_and_network.yaml")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert cluster_of(resource)["authOptions"]["mode"] == "token"
    for template in templates(resource):
        assert template["metadata"]["labels"].items() >= labels.items()
    for group in groups(resource):
        ray_command(["start", *(f"--{k}={v}" for k, v in group["rayStartParams"].items())])
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        volumes = {each["name"]: each for each in spec["volumes"]}
        mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
        claim = mounts["/shared"]["persistentVolumeClaim"]["claimName"]
        assert claim == volume["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_the_pods_have_what_the_run_of_the_job_takes():
    [job] = load("rayjob.yaml")
    config = run_of(job)
    head, *workers = groups(job)
    [worker] = workers
    assert worker["replicas"] == config.cluster.nodes
    [container] = worker["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == config.cluster.gpus_per_node
    assert float(limits["cpu"]) >= config.cluster.cpus_per_node
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_prometheus_is_told_the_port_of_the_run_and_let_through():
    [job], [cluster] = load("rayjob.yaml"), load("raycluster.yaml")
    _, policy = load("storage_and_network.yaml")
    logger = run_of(job).logger
    assert logger.prometheus
    assert logger.prometheus_address == "0.0.0.0"
    open_to = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    assert logger.prometheus_port in open_to
    for resource in (job, cluster):
        head, *workers = [group["template"]["metadata"] for group in groups(resource)]
        assert head["annotations"] == {
            "prometheus.io/scrape": "true", "prometheus.io/port": str(logger.prometheus_port),
        }  # fmt: skip
        assert not any("annotations" in each for each in workers)


def test_a_stopped_job_has_time_to_save():
    [job] = load("rayjob.yaml")
    head = groups(job)[0]["template"]["spec"]
    waits = {e["name"]: int(e["value"]) for e in head["containers"][0]["env"]}
    grace = run_of(job).run.grace_seconds
    stop = waits["RAY_JOB_STOP_WAIT_TIME_S"]
    assert grace is not None
    assert grace + 20 <= stop < head["terminationGracePeriodSeconds"]


def test_a_retry_goes_on_in_the_run_folder_on_the_volume():
    [job] = load("rayjob.yaml")
    config = run_of(job)
    assert job["spec"]["backoffLimit"] > 0
    assert config.resume == "auto"
    assert config.cluster.address == "auto"
    given = re.findall(r"=(/\S+)", job["spec"]["entrypoint"])
    assert len(given) == 6
    assert all(path.startswith("/shared/") for path in given)
