"""What may a PPO iteration of the recipes take on clusters that are not at hand?

The estimate that `run.plan_only=true` prints, for the recipes of conf/experiment on 8 GPUs and on
32 nodes with 8 GPUs: batch and workers multiplied for the larger cluster. Placements: `apart` as
the recipe has it, `ahead` with one iteration of generation ahead, `together` with all roles on all
GPUs, whose engines sleep while others work. Nothing of it is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import RESULTS, configuration, first_line, machine, print_table, write_result
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.gpu_memory import check_gpu_memory
from orchestrator.planning.model_sizes import ModelSize, role_memory
from orchestrator.planning.placement import place_roles
from orchestrator.planning.speed.first_change import first_change
from orchestrator.planning.speed.hardware import hardware_of
from orchestrator.planning.speed.iteration import StepEstimate, estimate_step
from workers.errors import RehearsalError

SMALL = ModelSize(1_414_647_808, 50_304, 2048, 2 * 24 * 2048, 2048, layers=24, heads=16, inner=8192)
MIDDLE = ModelSize(
    8_030_261_248, 128_256, 8192, 2 * 32 * 1024, 4096, layers=32, heads=32, inner=14_336
)
LARGE = ModelSize(
    70_553_706_496, 128_256, 8192, 2 * 80 * 1024, 8192, layers=80, heads=64, inner=28_672
)
# recipe -> its policy, reward model and critic, and the nodes that it is written for
RECIPES = {
    "instructgpt_1b": (SMALL, SMALL, 1),
    "instructgpt_8b": (MIDDLE, MIDDLE, 1),
    "instructgpt_70b": (LARGE, MIDDLE, 4),
}
PLACEMENTS = ("apart", "ahead", "together")
_ROLES = tuple(RoleName)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 32], help="with 8 GPUs each")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def recipe_config(recipe: str, nodes: int, placement: str, keys: list[str]) -> Config | None:
    """The recipe for this many nodes; None if it is written for more.

    Batch and workers grow with the nodes, so that each worker keeps its share.
    """
    written = RECIPES[recipe][2]
    if nodes < written or nodes % written:
        return None
    times = nodes // written
    config = configuration(f"+experiment={recipe}", *keys)
    config.cluster.nodes, config.cluster.cpus_per_node, config.cluster.gpus_per_node = nodes, 64, 8
    config.algorithm.prompts_per_iteration *= times
    config.algorithm.sequences_per_minibatch *= times
    for role in _ROLES:
        resources = config.cluster.roles.of(role)
        resources.workers *= times
        if placement == "together":
            resources.workers, resources.gpus = nodes * 8, 0.2
            resources.cpus = 1.0
    if placement == "ahead":
        config.algorithm.staleness, config.algorithm.importance_cap = 1, 2.0
    if placement == "together":
        config.rollout.tensor_parallel_size = 1
        config.rollout.sleep, config.rollout.gpu_memory_fraction = True, 0.4
        config.trainer.rest_on_host = config.trainer.zero_stage == 2
    return config


def estimates(recipe: str, nodes: int, placement: str, keys: list[str]) -> Iterator[dict]:
    """A row of the table, or none where the recipe does not fit."""
    config = recipe_config(recipe, nodes, placement, keys)
    if config is None:
        return
    policy, scalar, _ = RECIPES[recipe]
    sizes: dict[RoleName, ModelSize | None] = dict.fromkeys(RoleName, policy)
    sizes |= {RoleName.reward: scalar, RoleName.critic: scalar}
    gpu = hardware_of(config)
    row: dict = {"recipe": recipe, "gpus": 8 * nodes, "placement": placement}
    try:
        layout = place_roles(config.cluster, _ROLES)
        memory = tuple(role_memory(config, role, size) for role, size in sizes.items() if size)
        check_gpu_memory(config, layout, memory)
    except RehearsalError as error:
        yield row | {"refused": error.what}
        return
    found = estimate_step(config, layout, sizes, gpu)
    assert isinstance(found, StepEstimate)
    change = first_change(config, layout.roles, sizes, gpu, found)
    yield row | {
        "phases": found.phases, "seconds": found.seconds, "throughput": found.throughput,
        "idle": {role.value: share for role, share in found.idle.items()},
        "change_first": asdict(change) if change else None, "assumed": gpu.assumptions,
    }  # fmt: skip


def main() -> None:
    args = arguments()
    rows = [
        row
        for nodes in args.nodes
        for recipe in args.recipes
        for placement in PLACEMENTS
        for row in estimates(recipe, nodes, placement, args.set)
    ]
    heads = ("recipe", "GPUs", "placement", "s", "sequences/s", "phases", "idle", "change first")
    print_table(heads, [
        [r["recipe"], r["gpus"], r["placement"], f"{r['seconds']:.3g}", f"{r['throughput']:.3g}",
         " ".join(f"{n} {s:.3g}" for n, s in r["phases"].items()),
         " ".join(f"{n} {s:.0%}" for n, s in r["idle"].items()),
         f"{c['keys']} {c['gain']:.2f}" if (c := r["change_first"]) else "-"]
        if "seconds" in r
        else [r["recipe"], r["gpus"], r["placement"], "-", "-", r["refused"], "-", "-"]
        for r in rows
    ])  # fmt: skip
    path = write_result(
        args.out, "cluster_recipes",
        {"question": first_line(__doc__), "machine": machine(), "estimates": rows},
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
