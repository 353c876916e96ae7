"""A program that the cluster tests start, stop and kill: the real command with a small recipe.

Its first argument says how the recipe ends; the others are the command's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import types
from pathlib import Path

import ray

from orchestrator import run
from orchestrator.cluster.ray_cluster import start_cluster
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import Plan
from orchestrator.process.stop_signals import StopRequest
from workers.errors import RoleError


class Spinner:
    def where(self) -> tuple[int, str]:
        sys.stdout.write("words of the policy\n")
        sys.stdout.flush()
        folder = Path(tempfile.gettempdir())
        assert folder.name == "tmp"
        assert folder.parent.name.endswith(".tmp")
        (folder / "left behind").touch()
        return os.getpid(), os.environ["OMP_NUM_THREADS"]

    def spin(self) -> None:
        while True:  # never looks at a signal or a message
            pass


def recipe(
    config: Config, plan: Plan, folder: Path, start: object, stop: StopRequest, _: object
) -> None:
    with start_cluster(
        config.cluster, plan.layout, 60, folder / "logs", resort=stop.resort
    ) as cluster:
        options = cluster.bundle(RoleName.policy, 0, {"EXTRA": "1"})
        actor = ray.remote(Spinner).options(**options).remote()
        pid, threads = ray.get(actor.where.remote(), timeout=60)
        assert threads == "1"
        actor.spin.remote()
        sys.stdout.write(f"spinning {pid}\n")
        sys.stdout.flush()
        if ENDING == "error":
            time.sleep(0.5)
            raise RoleError("the policy failed", where="policy/0", fix="nothing to fix")
        if ENDING == "wait":
            ray.wait([actor.spin.remote()], timeout=120)
        if ENDING == "native":
            ray.get(actor.spin.remote())  # does not return while the actor spins


if __name__ == "__main__":
    ENDING = sys.argv.pop(1)
    module = types.ModuleType("orchestrator.recipe")
    module.run_recipe = recipe  # type: ignore[attr-defined]
    sys.modules["orchestrator.recipe"] = module
    sys.exit(run.main())
