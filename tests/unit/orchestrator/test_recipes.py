"""Ready recipes: they fit the machines that they name, and their pages say what they compose."""

from __future__ import annotations

import json
import math
import operator
import os
import re
import shlex
import struct
from pathlib import Path

import pytest
from composing import composed, joining
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from real_data import real_data

from orchestrator import run
from orchestrator.command_line.errors import reject_unknown_keys, schema_keys
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import Plan, make_plan, render_plan
from orchestrator.run import may_add
from workers.errors import ResourceError

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "docs" / "instructgpt.md"
GIB = 1 << 30
NAMES = r"`(instructgpt\w*)`"
FILES = [
    "data.files.demonstrations=D", "data.files.rankings=R", "data.files.prompts=P",
    "data.files.pretraining=T",
]  # fmt: skip
LLAMA = {
    "model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192,
}  # fmt: skip
# Published models of these sizes: Pythia 1.4B, Llama 3 8B and 70B.
SIZES = {
    "1b": (1_414_647_808, {
        "model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "vocab_size": 50304, "max_position_embeddings": 2048,
    }),
    "8b": (8_030_261_248, {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, **LLAMA,
    }),
    "70b": (70_553_706_496, {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, **LLAMA,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of headers alone: config.json, and a safetensors file whose weights are one hole."""
    made: dict[str, Path] = {}
    for name, (parameters, config) in SIZES.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps(config))
        tensor = {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}
        header = json.dumps({"w": tensor}).encode()
        weights = made[name] / "model.safetensors"
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(weights, 8 + len(header) + 2 * parameters)
    return made


def recipe(models: dict[str, Path], size: str, *overrides: str) -> Config:
    given = [f"model.checkpoints.base={models[size]}"]
    if size == "70b":
        given.append(f"model.checkpoints.reward_model={models['8b']}")
    return joining(composed(f"+experiment=instructgpt_{size}", *given, *FILES, *overrides))


@pytest.mark.parametrize(("size", "gpus"), [("1b", 8), ("8b", 8), ("70b", 32)])
def test_a_recipe_uses_every_gpu_of_its_nodes_and_fits(
    models: dict[str, Path], size: str, gpus: int
):
    config = recipe(models, size)
    plan = make_plan(config)
    assert plan.layout.gpus == gpus == 8 * (config.cluster.nodes or 0)
    assert [round(node.gpus, 4) for node in plan.layout.nodes] == [8] * (gpus // 8)
    assert max(node.cpus for node in plan.layout.nodes) <= 64
    assert max(len(line) for line in render_plan(plan).splitlines()) <= 120


_WHOLE_LOGITS = "trainer.logits_mib=131072"  # those of a micro-batch at once


def on_gpu(plan: Plan) -> dict[str, float]:
    return {m.role.value: m.device / GIB for m in plan.memory}


def test_memory_by_hand(models: dict[str, Path]):
    plan = make_plan(recipe(models, "8b"))
    held = on_gpu(plan)
    # 2 + 4 + 12 bytes a parameter over 3 GPUs; 256 MiB of logits, and the output layer's gradient
    # of 128,256 x 4,096 numbers of 4 bytes
    assert held["policy"] == pytest.approx((8.030261248e9 * 6 + 2.370e9) / GIB, rel=1e-3)
    whole = on_gpu(make_plan(recipe(models, "8b", "trainer.logits_mib=4096")))
    # 4,096 x 128,256 numbers of 4 bytes
    assert whole["policy"] == pytest.approx((8.030261248e9 * 6 + 2.101e9) / GIB, rel=1e-3)
    assert held["critic"] == pytest.approx(8.030261248e9 * 6 / GIB, rel=1e-3)
    assert held["reward"] == pytest.approx(14.96, abs=0.01)  # 2 bytes a parameter
    policy = next(m for m in plan.memory if m.role is RoleName.policy)
    # the moving average, 4 bytes a parameter, is in host memory beside the process
    assert policy.host == pytest.approx(4 * 8.030261248e9 + 490 * 2**20, rel=1e-6)


def test_zero_2_divides_gradients_and_state_but_not_weights(models: dict[str, Path]):
    policy = next(m for m in make_plan(recipe(models, "1b")).memory if m.role is RoleName.policy)
    assert policy.model == pytest.approx(1.414647808e9 * (2 + 16 / 4), rel=1e-6)


def test_a_small_reward_model_beside_a_large_policy_has_its_own_size(models: dict[str, Path]):
    plan = make_plan(recipe(models, "70b"))
    parameters = {m.role.value: m.parameters for m in plan.memory}
    assert parameters["reward"] == parameters["critic"] == 8_030_261_248
    assert parameters["policy"] == parameters["reference"] == 70_553_706_496
    held = on_gpu(plan)
    assert held["policy"] == pytest.approx(131.41, abs=0.01)  # whole while it loads
    assert held["rollout"] == pytest.approx(0.85 * 140, abs=0.01)  # all that the engine may take
    notes = " ".join(plan.notes)
    assert "reference needs 132 of 140 GiB" in notes
    assert "8 copies of its weights in host memory, 1,051 GiB" in notes


@pytest.mark.parametrize(
    ("size", "overrides", "where"),
    [
        ("70b", ["cluster.gpu_memory_gib=80"], "cluster.roles.reference"),
        ("8b", ["cluster.roles.policy.workers=1"], "cluster.roles.policy"),
        ("8b", ["cluster.gpu_memory_gib=24"], "cluster.roles.policy"),
        ("8b", ["cluster.gpu_memory_gib=16"], "rollout.gpu_memory_fraction"),
        ("8b", ["reward.micro_batch_tokens=131072", _WHOLE_LOGITS], "cluster.roles"),
        ("70b", ["rollout.tensor_parallel_size=1", "cluster.roles.rollout.gpus=1"],
         "rollout.gpu_memory_fraction"),
        # frozen weights have no gradient and no optimizer state, and change no other role
        ("70b", ["cluster.gpu_memory_gib=80", "model.freeze=[w]"], "cluster.roles.reference"),
        ("8b", ["reward.micro_batch_tokens=131072", _WHOLE_LOGITS, "model.freeze=[w]"],
         "cluster.roles"),
        ("8b", ["cluster.roles.policy.workers=1", "trainer.micro_batch_tokens=196608",
                _WHOLE_LOGITS, "model.freeze=[w]"], "cluster.roles.policy"),
        ("8b", ["cluster.roles.policy.workers=1", "stages=[pretrain,sft,reward_model,ppo]",
                "model.checkpoints.initial={base}", "model.freeze=[w]"], "cluster.roles.policy"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_gpu_is_refused(
    models: dict[str, Path], size: str, overrides: list[str], where: str
):
    with pytest.raises(ResourceError) as caught:
        make_plan(recipe(models, size, *(each.format(base=models[size]) for each in overrides)))
    assert caught.value.where == where
    assert "cluster.gpu_memory_gib" in caught.value.fix


def test_frozen_weights_make_the_estimate_too_high_to_refuse_by(models: dict[str, Path]):
    plan = make_plan(
        recipe(models, "8b", "cluster.roles.policy.workers=1", "model.freeze=[layers]")
    )
    (note,) = (note for note in plan.notes if note.startswith("policy needs 137 of 80 GiB"))
    assert "less what model.freeze saves" in note


def test_a_checkpoint_that_cannot_be_read_is_said(models: dict[str, Path]):
    plan = make_plan(recipe(models, "70b", "model.checkpoints.reward_model=ABSENT"))
    assert {m.role for m in plan.memory} == set(RoleName) - {
        RoleName.reward, RoleName.critic, RoleName.environment
    }  # fmt: skip
    assert any("no memory estimate of reward and critic" in note for note in plan.notes)


def test_offloading_moves_state_to_the_host(models: dict[str, Path]):
    one = ["cluster.roles.policy.workers=1", "trainer.offload=optimizer"]
    plan = make_plan(recipe(models, "8b", *one))
    policy = next(m for m in plan.memory if m.role is RoleName.policy)
    assert policy.model == 2 * 8_030_261_248
    assert policy.host == pytest.approx((16 + 4) * 8_030_261_248 + 490 * 2**20, rel=1e-6)


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of every table of the page that maps keys."""
    found: list[tuple[list[str], list[list[str]]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAPER.read_text(encoding="utf-8"), re.MULTILINE):
        header, _, *rows = (
            [c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()
        )
        if header[0] == "key":
            found.append((header, rows))
    return found


def entries() -> list[tuple[str, str, str]]:
    """(experiment, key, value) of every cell of these tables."""
    return [
        (experiment, row[0].strip("`"), cell.strip("`"))
        for header, rows in tables()
        for row in rows
        for title, cell in zip(header, row, strict=True)
        for experiment in re.findall(NAMES, title)
    ]


def test_the_page_says_what_the_recipes_compose():
    keys = set(schema_keys())
    seen = entries()
    assert len(seen) > 150
    recipes = {name: composed(f"+experiment={name}") for name in {name for name, _, _ in seen}}
    for experiment, key, value in seen:
        assert key in keys, key
        found = operator.attrgetter(key)(recipes[experiment])
        assert same(found, value), f"{experiment}: {key} is {found}, the page says {value}"


def same(found: object, written: str) -> bool:
    if isinstance(found, float | int) and not isinstance(found, bool):
        return math.isclose(found, float(written), rel_tol=1e-12)
    plain = getattr(found, "value", found)
    return written == {True: "true", False: "false", None: "null"}.get(plain, plain)


@pytest.mark.parametrize(
    ("experiment", "most"),
    [
        ("instructgpt", 8.05e-6), ("instructgpt_1b", 8.05e-6), ("instructgpt_8b", 8.05e-6),
        ("instructgpt_70b", 3.74e-6), ("ppo", 8.05e-6), ("ppo_ptx", 8.05e-6),
    ],
)  # fmt: skip
def test_policy_rates_stay_below_those_that_diverged(experiment: str, most: float):
    # Without pretraining gradients every run of the paper above 8.05e-6 diverged; 175B tried less.
    rate = composed(f"+experiment={experiment}").algorithm.policy_optimizer.learning_rate
    assert 2.55e-6 <= rate <= most


@pytest.mark.parametrize(
    "name",
    ["instructgpt", "instructgpt_1b", "instructgpt_8b", "instructgpt_70b", "instructgpt_sft"],
)
def test_epsilon_lets_small_gradients_through(name: str):
    # A weight of 70 billion has a gradient of about 3.8e-6: of its update 1e-5 leaves a part only.
    recipe = composed(f"+experiment={name}")
    gradient = 1 / math.sqrt(70e9)
    algorithm = recipe.algorithm
    stages = [recipe.sft.optimizer, recipe.reward_model.optimizer]
    for optimizer in (*stages, algorithm.policy_optimizer, algorithm.critic_optimizer):
        assert gradient / (gradient + optimizer.eps) > 0.99


def test_every_figure_that_a_recipe_sets_is_on_the_page():
    told = {key for _, key, _ in entries()}
    paper = run.CONF / "algorithm" / "instructgpt_paper.yaml"
    told_here = {f"algorithm.{key}" for key in leaves(paper)}
    for name in ("instructgpt", "instructgpt_sft"):
        told_here |= leaves(run.CONF / "experiment" / f"{name}.yaml")
    assert told_here - told == {"experiment", "stages"}


def leaves(path: Path, skip: tuple[str, ...] = ("defaults",)) -> set[str]:
    def walk(node: object, prefix: str) -> set[str]:
        if not isinstance(node, dict):
            return {prefix}
        return {k for name, value in node.items() for k in walk(value, f"{prefix}.{name}")}

    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {key.lstrip(".") for n, v in content.items() if n not in skip for key in walk(v, f"{n}")}


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    starts = ".venv/bin/python -m orchestrator.run "
    return [shlex.split(line)[3:] for line in text.splitlines() if line.startswith(starts)]


def questions(name: str) -> set[str]:
    return {json.loads(line)["question"] for line in real_data(name).read_text().splitlines()}


def test_the_walk_compares_on_prompts_that_no_reward_was_learnt_from():
    given = dict(word.split("=", 1) for command in commands("small.md") for word in command)
    assert given["data.sets.solutions.path"] == "gsm8k_model_solutions_k4.jsonl"
    assert given["data.files.prompts"] == given["data.files.demonstrations"] == "gsm8k_train.jsonl"
    assert "data.files.evaluation_prompts" not in given  # so a part of the prompts is held out
    ranked = questions("gsm8k_model_solutions_k4.jsonl")
    assert len(ranked) == 1319
    assert not ranked & questions("gsm8k_train.jsonl")


@pytest.mark.parametrize(
    "command", commands("instructgpt.md") + commands("small.md"), ids=lambda c: c[0]
)
def test_commands_of_the_pages_make_a_plan(command: list[str]):
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        plain = compose("config", overrides=[may_add(word) for word in command])
    reject_unknown_keys(plain)
    config = OmegaConf.to_object(plain)
    assert isinstance(config, Config)
    assert f"+experiment={config.experiment}" == command[0]
    assert make_plan(joining(config)).stages
