"""Every option in conf/ composes, and every experiment makes a plan on every cluster."""

from __future__ import annotations

import pytest
from composing import GROUPS, composed, joining
from hydra import compose, initialize_config_dir

from orchestrator import run
from orchestrator.command_line.errors import schema_keys
from orchestrator.config.cluster import Accelerator, Placement, RoleName
from orchestrator.config.engines import Precision, RolloutEngine
from orchestrator.config.reward import TextBridge
from orchestrator.config.run import StageName
from orchestrator.planning.model_sizes import pocket_size
from orchestrator.planning.plan import make_plan, render_plan


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (run.CONF / group).glob("*.yaml"))


WHOLE = [
    "model.checkpoints.base=B", "data.files.demonstrations=D", "data.files.rankings=R",
    "data.files.prompts=P", "data.files.pretraining=T",
]  # fmt: skip
GIVEN = {
    "pocket": [],
    "pocket_scale": [],
    "pocket_claims": [],
    "pocket_tiny": [],
    "sft": ["model.checkpoints.base=B", "data.files.demonstrations=D"],
    "reward_model": [
        "model.checkpoints.sft=S", "data.files.rankings=R", "data.files.demonstrations=D",
    ],
    "ppo": [
        "model.checkpoints.sft=S", "model.checkpoints.reward_model=M", "data.files.prompts=P",
    ],
    "ppo_ptx": [
        "model.checkpoints.sft=S", "model.checkpoints.reward_model=M", "data.files.prompts=P",
        "data.files.pretraining=T",
    ],
    "collect": ["model.checkpoints.sft=S", "data.files.prompts=P"],
    "dpo": ["model.checkpoints.sft=S", "data.files.rankings=R"],
    "pocket_dpo": [],
    "online_dpo": [
        "model.checkpoints.sft=S", "model.checkpoints.reward_model=M", "data.files.prompts=P",
    ],
    "pocket_online_dpo": [],
    "distill": ["model.checkpoints.sft=S", "model.checkpoints.teacher=T", "data.files.prompts=P"],
    "pocket_distill": ["model.checkpoints.teacher=T"],
    "pocket_distill_large": [],
    "pocket_algorithms": [],
    "rejection_sampling": [
        "model.checkpoints.sft=S", "model.checkpoints.reward_model=R", "data.files.prompts=P",
    ],
    "pocket_rejection": [],
    "pocket_arithmetic": [],
    "pocket_tools": [],
    "small_gsm8k_verifier": ["model.checkpoints.sft=S", "data.files.prompts=P"],
    "pocket_overoptimization": [],
    "pocket_overoptimization_quick": [],
    "overoptimization": [
        "model.checkpoints.sft=S", "model.checkpoints.gold=G", "data.files.prompts=P",
        "data.files.demonstrations=D",
    ],
    "pocket_iterated": [],
    "pocket_constitution": [],
    "constitution": ["model.checkpoints.sft=S", "data.files.prompts=P"],
    "rlaif": [
        "model.checkpoints.sft=S", "data.files.prompts=P", "data.files.demonstrations=D",
    ],
    "evaluate": ["model.checkpoints.ppo=O", "data.files.evaluation_prompts=E"],
    "small_sft": [
        "model.checkpoints.initial=I", "data.files.demonstrations=D", "data.files.pretraining=T",
    ],
    "small_reward_model": [
        "model.checkpoints.sft=S", "data.files.rankings=R", "data.files.demonstrations=D",
    ],
    "small_ppo": [
        "model.checkpoints.sft=S", "model.checkpoints.reward_model=M", "data.files.prompts=P",
    ],
    "instructgpt": WHOLE,
    "instructgpt_sft": WHOLE[:2],
    "instructgpt_1b": WHOLE,
    "instructgpt_8b": WHOLE,
    "instructgpt_70b": [*WHOLE, "model.checkpoints.reward_model=M"],
}  # fmt: skip


def test_every_experiment_is_covered():
    assert options("experiment") == sorted(GIVEN)


@pytest.mark.parametrize(
    ("experiment", "cluster"),
    [(experiment, "") for experiment in sorted(GIVEN)]
    + [(experiment, c) for experiment in ("pocket", "ppo_ptx") for c in options("cluster")[1:]],
)
def test_experiment_plans_on_cluster(experiment: str, cluster: str):
    chosen = [f"cluster={cluster}"] if cluster else []  # "" = the experiment's own
    config = composed(f"+experiment={experiment}", *chosen, *GIVEN[experiment])
    plan = make_plan(joining(config))
    assert config.experiment == experiment
    assert [stage.name for stage in plan.stages] == config.stages
    text = render_plan(plan)
    assert all(stage.name in text for stage in plan.stages)
    assert all(role.value in text for role in plan.layout.roles)
    assert max(len(line) for line in text.splitlines()) <= 120


OPTIONS = {g: options(g) for g in GROUPS if g not in ("experiment", "cluster")}


@pytest.mark.parametrize("number", range(max(map(len, OPTIONS.values()))))
def test_options_compose(number: int):
    chosen = {group: found[number % len(found)] for group, found in OPTIONS.items()}
    needed = {"function": ["environment.factory=m:make"], "tools": ["environment.tools=[t:ask]"]}
    composed(
        "+experiment=pocket",
        *(f"{group}={option}" for group, option in chosen.items()),
        *needed.get(chosen["environment"], []),
    )


def test_the_recipe_stages():
    assert composed("+experiment=pocket").stages == [
        StageName.pretrain,
        StageName.sft,
        StageName.reward_model,
        StageName.ppo,
        StageName.ppo_ptx,
        StageName.evaluate,
    ]
    assert StageName.pretrain_large in composed("+experiment=pocket_scale").stages


def test_a_gpu_cluster_brings_its_engine_settings():
    config = composed("+experiment=pocket", "cluster=multi_node")
    assert config.cluster.accelerator is Accelerator.cuda
    assert config.cluster.placement is Placement.apart
    assert config.rollout.precision is config.trainer.precision is Precision.bf16
    assert config.rollout.transport == "nccl"
    assert composed("+experiment=pocket").rollout.precision is Precision.fp32


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_choice_gives_trainer_engine_and_tolerance_of_bf16(stage: int):
    config = composed("+experiment=pocket", f"trainer=zero{stage}_bf16")
    assert config.trainer.precision is config.rollout.precision is Precision.bf16
    assert config.trainer.zero_stage == stage
    assert config.rollout.parity_tolerance == 0.3
    mixed = composed("+experiment=pocket", f"trainer=zero{stage}_bf16", "rollout.precision=fp32")
    assert mixed.rollout.precision is Precision.fp32
    assert mixed.trainer.precision is Precision.bf16


def test_the_command_line_beats_the_cluster_and_the_experiment():
    line = ["+experiment=pocket_tiny", "cluster=one_gpu", "rollout=transformers"]
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        config = compose("config", overrides=[*line, "pretrain.steps=5"])
    assert config.rollout.engine is RolloutEngine.transformers
    assert config.pretrain.steps == 5
    assert config.sft.steps == 4  # still the experiment's


def test_a_reward_function_reads_text():
    config = composed("+experiment=pocket", "reward=function", "reward.function=a.b:c")
    assert config.reward.bridge is TextBridge.text
    ppo = next(s for s in make_plan(joining(config)).stages if s.name is StageName.ppo)
    assert ppo.needs == ("sft",)


def test_the_large_model_has_eight_times_the_parameters():
    config = composed("+experiment=pocket_scale")
    ratio = pocket_size(config.model.large).parameters / pocket_size(config.model.pocket).parameters
    assert 7.5 < ratio < 8.5


def test_schema_keys_name_leaves_and_sections():
    keys = set(schema_keys())
    assert {"seed", "algorithm", "algorithm.kl.coefficient", "cluster.roles.policy.gpus"} <= keys
    assert all(f"cluster.roles.{role.value}.workers" in keys for role in RoleName)


def test_machines_without_gpus_keep_trainers_and_engines_apart():
    config = composed("+experiment=pocket_tiny", "cluster=cpu_nodes")
    assert config.rollout.transport == "gloo"
    nodes = make_plan(joining(config)).layout.nodes
    assert len(nodes) == 2
    for node in nodes:
        assert {RoleName.rollout, RoleName.policy} - {place.role for place in node.places}
