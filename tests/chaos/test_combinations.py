"""Workers that are lost where several features meet: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest

from benchmarks import chaos

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]

_AHEAD = ["algorithm.staleness=1", "rollout.join_running=true", "rollout.inflight_updates=true"]
# what is on; ZeRO stage, trainer ranks, engines; whether the promise is the same bits
_CASES = {
    "weights in flight": (_AHEAD, (1, 1, 2), False),
    "adapters over shards": (["model.lora.rank=4"], (3, 2, 2), True),
    "weights by gloo": (["rollout.transport=gloo"], (1, 1, 1), True),
    "a small object store": (["cluster.object_store_mib=80"], (1, 1, 1), True),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("role", ["rollout", "policy"])
@pytest.mark.parametrize("case", _CASES)
def test_a_worker_lost_leaves_no_trace(home: Path, case: str, role: str) -> None:
    overrides, (zero, ranks, engines), exact = _CASES[case]
    models = [*chaos.prepare(home), *overrides]
    args = argparse.Namespace(
        work=home / case.replace(" ", "-"), iterations=24, every_steps=1, probe_seconds=3.0,
        zero=zero, ranks=ranks, engines=engines,
    )  # fmt: skip
    calm = args.work / "calm"
    if not calm.exists():
        chaos.undisturbed(args, models)
    found = chaos.one_fault(args, models, calm, role, "SIGKILL", random.Random(case + role))
    assert (found["exit_code"], found["lost"], found["duplicates"]) == (0, 0, 0)
    assert found["losses"] == 1
    if exact:
        assert found["mixed_versions"] == 0
        assert found["same_metrics"]
        assert found["same_weights"]
