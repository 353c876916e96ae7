"""A local cluster leaves no process and no file behind, however its driver ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import ray.cluster_utils

from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import (
    ClusterConfig,
    EngineResources,
    Placement,
    RoleName,
    RoleResources,
    RolesConfig,
)
from orchestrator.planning.placement import Layout, place_roles
from workers.errors import ResourceError

DRIVER = Path(__file__).with_name("cluster_driver.py")
MARK = "REHEARSAL_TEST_MARK"


class Driver:
    """The program, and every process that descends from it, also once it is gone."""

    def __init__(self, ending: str, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder / "run"
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), ending, "+experiment=pocket_tiny", "stages=[pretrain]",
             f"run.dir={self.folder}", "run.grace_seconds=2"],
            env={**os.environ, MARK: self.mark, "TMPDIR": "/tmp"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip

    def wait_until_spinning(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("spinning"):
                return int(line.split()[1])
        assert self.process.stderr is not None
        pytest.fail(f"the driver ended early: {self.process.stderr.read()}")

    def descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.pid != self.process.pid:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def left_after(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        while (left := self.descendants()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [f"{process.pid} {process.name()}" for process in left]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    drivers: list[Driver] = []

    def make(ending: str) -> Driver:
        drivers.append(Driver(ending, tmp_path))
        return drivers[-1]

    yield make
    for driver in drivers:
        for process in (*driver.descendants(), driver.process):
            process.kill()
        driver.process.communicate()


def test_an_error_shuts_everything_down_and_keeps_the_logs(start):
    driver = start("error")
    driver.wait_until_spinning()
    _, errors = driver.process.communicate(timeout=60)
    assert driver.process.returncode == 7
    assert driver.left_after(0) == []
    assert errors.startswith("error: the policy failed")
    assert "Traceback" not in errors
    assert "RoleError" in (driver.folder / "error.log").read_text()
    logs = [path.read_text() for path in (driver.folder / "logs").iterdir()]
    assert any("words of the policy" in log for log in logs)


def test_sigterm_shuts_everything_down(start):
    driver = start("wait")
    spinner = driver.wait_until_spinning()
    assert psutil.pid_exists(spinner)
    driver.process.send_signal(signal.SIGTERM)
    _, errors = driver.process.communicate(timeout=60)
    assert driver.process.returncode == 128 + signal.SIGTERM
    assert driver.left_after(0) == []
    assert "stopped by SIGTERM" in errors


def test_a_signal_to_every_process_reaches_the_driver_alone(start):
    driver = start("wait")
    spinner = driver.wait_until_spinning()
    others = driver.descendants()
    for each in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        for process in others:
            process.send_signal(each)
    time.sleep(1)
    assert [process for process in others if not process.is_running()] == []
    assert psutil.pid_exists(spinner)
    driver.process.send_signal(signal.SIGUSR2)  # SIGHUP is ignored where the tests run under nohup
    _, errors = driver.process.communicate(timeout=60)
    assert driver.process.returncode == 128 + signal.SIGUSR2
    assert driver.left_after(0) == []
    assert "stopped by SIGUSR2" in errors


@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_a_server_of_ray_that_hangs_does_not_hold_up_the_end(start, server: str):
    driver = start("wait")
    driver.wait_until_spinning()
    next(each for each in driver.descendants() if each.name() == server).suspend()
    driver.process.send_signal(signal.SIGTERM)
    driver.process.communicate(timeout=60)
    assert driver.process.returncode == 128 + signal.SIGTERM
    assert driver.left_after(0) == []


@pytest.mark.parametrize(
    ("server", "signal_name"), [("gcs_server", "SIGKILL"), ("raylet", "SIGSTOP")]
)
def test_a_lost_server_ends_a_driver_that_is_inside_native_code(
    start, server: str, signal_name: str
):
    driver = start("native")
    driver.wait_until_spinning()
    others = driver.descendants()
    struck = next(each for each in others if each.name() == server)
    struck.send_signal(getattr(signal, signal_name))
    _, errors = driver.process.communicate(timeout=60)
    assert driver.process.returncode == 7
    _, alive = psutil.wait_procs(others, timeout=10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    assert errors.startswith(f"error: Ray cannot continue: {server} (pid {struck.pid})")
    assert "in recipe" in (driver.folder / "error.log").read_text()  # where it was


def test_sigkill_of_the_driver_leaves_no_process(start):
    driver = start("wait")
    driver.wait_until_spinning()
    driver.process.kill()
    driver.process.wait(timeout=10)
    assert driver.left_after(30) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_no_cluster_at_the_address(address: str):
    config = ClusterConfig(address=address)
    with pytest.raises(ResourceError, match="no Ray cluster answers") as caught:
        start_cluster(config, place_roles(config, [RoleName.policy]), 5)
    assert "ray start" in caught.value.fix


@pytest.mark.slow
def test_groups_apart_on_two_nodes():
    class Where:  # local, so that it travels by value: workers cannot import this file
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    nodes = ray.cluster_utils.Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=4, include_dashboard=False, object_store_memory=80 << 20)
        two = RoleResources(workers=2, cpus=1)
        config = ClusterConfig(
            address=nodes.address, nodes=2, cpus_per_node=4, placement=Placement.apart,
            roles=RolesConfig(policy=two, critic=two),
        )  # fmt: skip
        layout = place_roles(config, [RoleName.policy, RoleName.critic])
        with start_cluster(config, layout, 60) as cluster:
            found = {
                role: ray.get(
                    [
                        ray.remote(Where)
                        .options(**cluster.bundle(role, rank))
                        .remote()
                        .node.remote()
                        for rank in range(2)
                    ]
                )
                for role in ("policy", "critic")
            }
        assert [len(set(nodes)) for nodes in found.values()] == [1, 1]
        assert found["policy"] != found["critic"]

        config.cpus_per_node, config.roles.policy.cpus = 99, 40
        too_large = place_roles(config, [RoleName.policy])
        with pytest.raises(ResourceError, match="80 CPUs"):
            start_cluster(config, too_large, 5)
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_rank_i_of_every_role_gets_gpu_i():
    class Where:  # local, so that it travels by value: workers cannot import this file
        def gpu(self) -> tuple[str, str]:
            context = ray.get_runtime_context()
            return context.get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

    def gpus(layout: Layout) -> dict[str, list[tuple[str, str]]]:
        with start_cluster(config, layout, 60) as cluster:
            remote = ray.remote(Where)
            actors = {
                role.value: [
                    remote.options(**cluster.bundle(role, rank)).remote()
                    for rank in range(config.roles.of(role).workers)
                ]
                for role in layout.roles
            }
            return {r: ray.get([a.gpu.remote() for a in of]) for r, of in actors.items()}

    roles = [RoleName.rollout, RoleName.policy, RoleName.critic]
    nodes = ray.cluster_utils.Cluster()
    try:
        for gpus_of_node in (2, 3, 2):  # Ray believes what it is told about GPUs
            nodes.add_node(
                num_cpus=8, num_gpus=gpus_of_node, include_dashboard=False,
                object_store_memory=80 << 20,
            )  # fmt: skip
        config = ClusterConfig(
            address=nodes.address, nodes=3, cpus_per_node=8, gpus_per_node=2,
            roles=RolesConfig(
                rollout=EngineResources(workers=6, cpus=0.5, gpus=0.4),
                policy=RoleResources(workers=6, cpus=0.5, gpus=0.3),
                critic=RoleResources(workers=6, cpus=0.5, gpus=0.3),
            ),
        )  # fmt: skip
        found = gpus(place_roles(config, roles))
        assert found["rollout"] == found["policy"] == found["critic"]
        assert len(set(found["policy"])) == 6
        assert [len({found["policy"][i][0], found["policy"][i + 1][0]}) for i in (0, 2, 4)] == [
            1, 1, 1,
        ]  # fmt: skip
        assert len({node for node, _ in found["policy"]}) == 3

        config.nodes, config.gpus_per_node = 1, 3
        for role in roles:
            config.roles.of(role).workers = 3
        found = gpus(place_roles(config, roles))  # only one of the nodes has three GPUs
        assert found["rollout"] == found["policy"] == found["critic"]
        assert [gpu for _, gpu in sorted(found["policy"])] == ["0", "1", "2"]
        assert len({node for node, _ in found["policy"]}) == 1
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_nodes_that_join_after_the_driver_are_waited_for():
    nodes = ray.cluster_utils.Cluster()
    config = ClusterConfig(
        address="", nodes=2, cpus_per_node=2, placement=Placement.apart,
        roles=RolesConfig(
            policy=RoleResources(workers=1, cpus=2), critic=RoleResources(workers=1, cpus=2)
        ),
    )  # fmt: skip
    layout = place_roles(config, [RoleName.policy, RoleName.critic])
    notes: list[str] = []
    joined: list[subprocess.Popen[bytes]] = []
    try:
        for cpus in (0, 2):
            nodes.add_node(num_cpus=cpus, include_dashboard=False, object_store_memory=80 << 20)
        config.address = nodes.address

        def join(note: str) -> None:
            notes.append(note)
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
                       f"--address={nodes.address}", "--num-cpus=2",
                       f"--object-store-memory={80 << 20}"]  # fmt: skip
            joined.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

        with start_cluster(config, layout, 60, note=join):
            alive = [node for node in ray.nodes() if node["Alive"]]
            assert sorted(node["Resources"].get("CPU", 0) for node in alive) == [0, 2, 2]
        assert notes == ["1 of 2 node(s) have joined: waiting up to 60 s for the rest"]
    finally:
        for process in joined:
            process.terminate()
            process.wait(timeout=30)
        nodes.shutdown()
