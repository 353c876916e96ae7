"""Variants of stages: what each stage run reads, makes and runs with, and what is refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import composed
from omegaconf import OmegaConf

from orchestrator.checkpoints.config_changes import flat, plain_config
from orchestrator.command_line.composition import compose_run
from orchestrator.config.cluster import RoleName
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import KLPlace
from orchestrator.config.variants import algorithm_files, variant, with_files
from orchestrator.planning.disk_space import disk_space
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.expand import (
    compared,
    expand,
    judges_training,
    models_read,
    run_roles,
)
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.planning.threads import engine_threads, threads_of
from workers.errors import ConfigError, RehearsalError, UnknownKeyError

BEFORE = "pretrain,sft,reward_model"


def run(stages: str, **variants: dict[str, Any]) -> Config:
    config = composed("+experiment=pocket_tiny", f"stages=[{BEFORE}]")
    names = [*BEFORE.split(","), *stages.split(",")]
    plain = plain_config(config) | {"stages": names, "variants": variants}
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(made, Config)
    return made


def by_name(config: Config) -> dict[str, StageRun]:
    return {str(each.name): each for each in expand(config)}


def test_the_commands_and_the_experiment_of_the_page_are_planned() -> None:
    page = (Path(__file__).parents[4] / "docs/variants.md").read_text()
    blocks = [block.strip() for block in page.split("```")[1::2]]
    commands = [shlex.split(b.replace("\\\n", " "))[3:] for b in blocks if "orchestrator" in b]
    assert len(commands) == 2
    for command in commands:
        config = compose_run(command)
        assert [each.name for each in make_plan(config).stages] == config.stages
    shown, other = (
        yaml.safe_load(block.removeprefix("yaml"))
        for block in blocks
        if block.startswith("yaml\nstages:")
    )
    given = compose_run(["+experiment=pocket_algorithms"])
    assert given.stages == shown["stages"]
    assert given.variants == with_files(shown["variants"])
    assert {*make_plan(given).layout.roles} == ALL
    typed = [
        f"stages=[{','.join(other['stages'])}]",
        *map("=".join, leaves(other["variants"], "variants.")),
    ]
    small = compose_run(["+experiment=pocket", *typed])
    assert [each.name for each in make_plan(small).stages] == other["stages"]


def leaves(tree: dict[str, Any], above: str) -> Iterator[tuple[str, str]]:
    """Key and value, as typed, of each leaf."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)


def test_a_run_without_variants_is_its_stages() -> None:
    config = composed("+experiment=pocket_tiny")
    runs = expand(config)
    assert [each.name for each in runs] == config.stages
    assert all(each.config is config and not each.variant for each in runs)
    assert {str(r.name): (r.reads, r.product) for r in runs} == {
        "pretrain": ((), "base"),
        "sft": (("base",), "sft"),
        "reward_model": (("sft", "base"), "reward_model"),
        "ppo": (("sft", "reward_model"), "ppo"),
        "ppo_ptx": (("sft", "reward_model"), "ppo_ptx"),
        "evaluate": ((), ""),
    }


def test_a_variant_changes_its_keys_and_nothing_else() -> None:
    config = run("ppo,b0", b0={"stage": "ppo", "set": {"algorithm.kl.coefficient": 0.0}})
    before = flat(plain_config(config))
    ppo, b0 = by_name(config)["ppo"], by_name(config)["b0"]
    changed = {
        key: value
        for key, value in flat(plain_config(b0.config)).items()
        if before.get(key) != value and key != "stages"
    }
    assert changed == {"algorithm.kl.coefficient": 0.0}
    assert ppo.config.algorithm.kl.coefficient == config.algorithm.kl.coefficient != 0.0
    assert (b0.stage, b0.product, b0.seed_as) == (StageName.ppo, "b0", "b0")
    assert b0.reads == ppo.reads == ("sft", "reward_model")


@pytest.mark.parametrize(
    "given",
    [
        {"algorithm.kl.coefficient": 0.5, "algorithm.clip": 0.1},
        {"algorithm": {"kl": {"coefficient": 0.5}, "clip": 0.1}},
        {"algorithm": {"kl.coefficient": 0.5}, "algorithm.clip": 0.1},
    ],
)
def test_keys_are_nested_or_dotted(given: dict[str, Any]) -> None:
    own = by_name(run("x", x={"stage": "ppo", "set": given}))["x"].config.algorithm
    assert (own.kl.coefficient, own.clip) == (0.5, 0.1)


def test_a_file_of_an_algorithm_goes_over_the_settings_of_the_run_and_set_over_the_file() -> None:
    config = run(
        "gspo,dapo",
        gspo={"stage": "ppo", "algorithm": "gspo", "set": {"algorithm.samples_per_prompt": 2}},
        dapo={"stage": "ppo", "algorithm": "dapo", "set": {"algorithm.prompts_per_iteration": 8}},
    )
    gspo = by_name(config)["gspo"].config.algorithm
    # grpo.yaml, then gspo.yaml, then `set`; iterations are those of pocket_tiny, not of the file
    # that both build on.
    assert (gspo.advantage, gspo.policy_loss, gspo.clip, gspo.clip_high) == (
        "grpo", "gspo", 3e-4, 4e-4,
    )  # fmt: skip
    assert (gspo.prompts_per_iteration, gspo.samples_per_prompt, gspo.iterations) == (16, 2, 2)
    dapo = by_name(config)["dapo"].config.algorithm
    assert (dapo.kl.coefficient, dapo.clip_high, dapo.dynamic_sampling.enabled) == (0.0, 0.28, True)


@pytest.mark.parametrize("name", algorithm_files())
def test_every_file_of_an_algorithm_fits(name: str) -> None:
    algorithm = by_name(run("x", x={"stage": "ppo", "algorithm": name}))["x"].config.algorithm
    alone = composed(f"algorithm={name}").algorithm
    assert algorithm.advantage == alone.advantage
    assert algorithm.policy_loss == alone.policy_loss
    assert algorithm.kl.place is alone.kl.place


def test_config_yaml_keeps_the_keys_of_the_file(tmp_path: Path) -> None:
    line = ["+experiment=pocket_tiny", "stages=[pretrain,sft,reward_model,x]",
            "variants.x.stage=ppo", "variants.x.algorithm=rloo"]  # fmt: skip
    kept = compose_run(line).variants
    assert kept["x"]["files"]["rloo"]["algorithm.advantage"] == "rloo"
    kept["x"]["files"]["rloo"]["algorithm.samples_per_prompt"] = 2  # as an older file had it
    assert with_files(kept) == kept
    assert variant("x", kept["x"]).changes["algorithm.samples_per_prompt"] == 2
    other = kept["x"] | {"algorithm": "grpo"}  # a repeated run that asks for another file
    assert variant("x", other).changes["algorithm.advantage"] == "grpo"


def test_a_variant_may_read_other_products() -> None:
    config = run(
        "rm2,ppo,more",
        rm2={"stage": "reward_model", "set": {"reward_model.epochs": 2}},
        more={"stage": "ppo", "from": "ppo", "reward_model": "rm2"},
    )
    more = by_name(config)["more"]
    assert more.inputs == {"sft": "ppo", "reward_model": "rm2"}
    assert more.config.stages == ["pretrain", "sft", "reward_model", "ppo"]
    plan = {each.name: each for each in make_plan(config).stages}
    assert plan["more"].needs == ("ppo", "rm2")
    assert plan["rm2"].optimizer_steps == 2 * (plan["reward_model"].optimizer_steps or 0)


def test_a_policy_may_be_compared_with_another_model_than_its_start() -> None:
    again = {"from": "ppo", "reference": "sft"}
    config = run(
        "ppo,more,dpo,ranked,online",
        more={"stage": "ppo"} | again,
        ranked={"stage": "dpo"} | again,
        online={"stage": "online_dpo", "set": {"algorithm.samples_per_prompt": 2}} | again,
    )
    runs = by_name(config)
    assert runs["more"].reads == ("ppo", "reward_model", "sft")
    assert runs["ranked"].reads == ("ppo", "sft")
    assert runs["online"].inputs["reference"] == "sft"
    text = render_plan(make_plan(config))
    assert text.count("the reference is sft\n") == 3
    assert models_read(config, "more", ["pretrain", "sft", "reward_model", "ppo"]) >= {"sft", "ppo"}


def test_the_first_stage_that_reads_rankings_labels_them() -> None:
    config = run("dpo,ipo", ipo={"stage": "dpo", "set": {"preference.loss": "ipo"}})
    config.stages = ["pretrain", "sft", "ipo", "dpo"]
    labels = {name: each.labels for name, each in by_name(config).items()}
    assert labels == {"pretrain": False, "sft": False, "ipo": True, "dpo": False}
    assert RoleName.rollout in by_name(config)["ipo"].roles
    assert RoleName.rollout not in by_name(config)["dpo"].roles
    assert by_name(config)["dpo"].reads == ("sft",)


def test_a_variant_may_stand_for_its_stage() -> None:
    config = run("ppo", ppo={"stage": "ppo", "set": {"algorithm.iterations": 3}})
    ppo = by_name(config)["ppo"]
    assert (ppo.product, ppo.config.algorithm.iterations) == ("ppo", 3)
    base = run("ppo", pretrain={"stage": "pretrain", "set": {"pretrain.steps": 3}})
    assert by_name(base)["pretrain"].product == "base"


ARM = {"stage": "ppo"}


@pytest.mark.parametrize(
    ("stages", "variants", "where", "what", "fix"),
    [
        ("pop", {}, "stages", "'pop', which is neither", "did you mean ppo?"),
        ("arms", {"arm": ARM}, "stages", "'arms', which is neither", "did you mean arm?"),
        ("x", {"x": {}}, "variants.x", "no stage is set", "variants.x.stage=ppo"),
        ("x", {"x": 3}, "variants.x", "3 is no variant", "variants.x.stage=ppo"),
        ("x", {"x": {"stage": "pop"}}, "variants.x.stage", "'pop' is no stage", "mean ppo?"),
        ("x", {"x": {"stage": "evaluate"}}, "variants.x.stage", "runs once", "evaluate in stages"),
        ("x", {"x": ARM | {"form": "sft"}}, "configuration", "variants.x.form", "variants.x.from?"),
        ("x", {"x": ARM | {"algorithm": "rlo"}}, "variants.x.algorithm", "'rlo'", "mean rloo?"),
        ("x", {"x": ARM | {"seed_as": "pop"}}, "variants.x.seed_as", "'pop'", "did you mean ppo?"),
        ("x", {"x": ARM | {"set": 3}}, "variants.x.set", "3 holds no keys", "variants.x.set."),
        ("x", {"x": ARM | {"from": ["sft"]}}, "variants.x.from", "is no name", "one name"),
        ("sft2-b", {"sft2-b": {"stage": "sft"}}, "variants.sft2-b", "cannot be the name", "digits"),
        ("critic", {"critic": ARM}, "variants.critic", "cannot be the name", "critic"),
        ("ppo", {"ppo": {"stage": "sft"}}, "variants.ppo", "name of the stage ppo", "another name"),
        ("base", {"base": ARM}, "stages", "both make the model 'base'", "another name"),
        (
            "x", {"x": ARM | {"set": {"algorithm.clp": 1}}},
            "configuration", "unknown key variants.x.set.algorithm.clp",
            "did you mean variants.x.set.algorithm.clip",
        ),
        (
            "x", {"x": ARM | {"set": {"cluster.nodes": 2}}},
            "variants.x.set.cluster.nodes", "cannot differ from the run", "for the whole run",
        ),
        (
            "x", {"x": {"stage": "reward_model", "set": {"reward_model.prompts": 9}}},
            "variants.x.set.reward_model.prompts", "cannot differ from the run", "for the whole",
        ),
        (
            "x", {"x": {"stage": "sft", "set": {"sft.demonstrations_per_step": 9}}},
            "variants.x.set.sft.demonstrations_per_step", "cannot differ", "for the whole run",
        ),
        (
            "x", {"x": ARM | {"set": {"run.dir": "elsewhere"}}},
            "variants.x.set.run.dir", "cannot differ from the run", "for the whole run",
        ),
        (
            "x", {"x": ARM | {"set": {"algorithm.kl.coefficient": -1.0}}},
            "variants.x.set.algorithm.kl.coefficient", "out of range", "at least 0",
        ),
        (
            "x", {"x": ARM | {"set": {"algorithm.kl.place": "nowhere"}}},
            "variants.x.set.algorithm.kl.place", "nowhere", "",
        ),
        (
            "x", {"x": ARM | {"set": {"algorithm.sequences_per_minibatch": 7}}},
            "variants.x.set.algorithm.sequences_per_minibatch", "7", "",
        ),
        (
            "x", {"x": ARM | {"algorithm": "rloo", "set": {"algorithm.samples_per_prompt": 1}}},
            "variants.x.set.algorithm.samples_per_prompt", "at least 2 samples", "2 or more",
        ),
        ("x", {"x": ARM | {"from": "stf"}}, "variants.x.from", "which no stage", "mean sft?"),
        (
            "x,y", {"x": ARM | {"from": "y"}, "y": ARM},
            "variants.x.from", "later stage", "put y before x",
        ),
        (
            "x,y", {"x": ARM | {"from": "y"}, "y": ARM | {"from": "x"}},
            "variants.x.from", "itself comes from x", "does not depend on it",
        ),
        ("x", {"x": ARM | {"from": "x"}}, "variants.x.from", "itself comes from x", "not depend"),
        (
            "x", {"x": {"stage": "sft", "reward_model": "reward_model"}},
            "variants.x.reward_model", "reads no reward model", "leave it out",
        ),
        (
            "x", {"x": {"stage": "pretrain", "from": "sft"}},
            "variants.x.from", "starts from no model", "leave it out",
        ),
        ("x", {"x": ARM | {"reference": "stf"}}, "variants.x.reference", "no stage", "mean sft?"),
        (
            "x,y", {"x": ARM | {"reference": "y"}, "y": ARM},
            "variants.x.reference", "later stage", "put y before x",
        ),
        *(
            (
                "x", {"x": {"reference": "base"} | given},
                "variants.x.reference", "with no model", "leave it out",
            )
            for given in (
                {"stage": "sft"}, {"stage": "reward_model"}, {"stage": "rejection_sampling"},
                {"stage": "dpo", "set": {"preference.loss": "simpo"}},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    stages: str, variants: dict[str, Any], where: str, what: str, fix: str
) -> None:
    with pytest.raises(RehearsalError) as caught:
        make_plan(run(stages, **variants))
    assert where == caught.value.where
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_key_in_a_longer_one_is_left_alone() -> None:
    changes = {"algorithm.clip": 0.1, "algorithm.clip_high": -1.0}
    with pytest.raises(ConfigError) as caught:
        expand(run("x", x={"stage": "ppo", "set": changes}))
    assert caught.value.where == "variants.x.set.algorithm.clip_high"
    assert caught.value.what.startswith("variants.x.set.algorithm.clip_high=")


def test_a_variant_in_place_of_its_stage_has_settings_that_the_run_has_not() -> None:
    ranked = {"stage": "online_dpo", "set": {"algorithm.samples_per_prompt": 4}}
    config = run("ppo,online_dpo", online_dpo=ranked)
    assert config.algorithm.samples_per_prompt == 1
    assert [each.makes for each in make_plan(config).stages][-2:] == ["ppo", "online_dpo"]
    single = ranked | {"set": {"algorithm.samples_per_prompt": 1}}
    with pytest.raises(ConfigError, match="one per prompt") as caught:
        make_plan(run("ppo,online_dpo", online_dpo=single))
    assert caught.value.where == "variants.online_dpo.set.algorithm.samples_per_prompt"


def test_one_variant_twice_and_one_that_is_not_run() -> None:
    with pytest.raises(ConfigError, match="names x twice"):
        run("x,x", x=ARM)
    unused = run("ppo", x=ARM | {"set": {"algorithm.iterations": 9}})
    assert [each.name for each in expand(unused)][-1] == "ppo"


def test_from_the_command_line_with_the_nearest_key() -> None:
    line = ["+experiment=pocket_tiny", "stages=[pretrain,sft,reward_model,b0]"]
    given = compose_run(
        [*line, "variants.b0.stage=ppo", "variants.b0.set.algorithm.kl.coefficient=0"]
    )
    assert by_name(given)["b0"].config.algorithm.kl.coefficient == 0.0
    with pytest.raises(UnknownKeyError, match=r"variants\.b0\.sat"):
        compose_run([*line, "variants.b0.stage=ppo", "variants.b0.sat.algorithm.clip=1"])


def test_the_plan_names_each_variant_and_what_differs() -> None:
    config = run(
        "ppo,rloo,b0,evaluate",
        rloo=ARM | {"algorithm": "rloo", "set": {"algorithm.prompts_per_iteration": 4}},
        b0=ARM | {"from": "ppo", "set": {"algorithm.kl.coefficient": 0}, "seed_as": "ppo"},
    )
    text = render_plan(make_plan(config))
    assert "  rloo           from sft + reward_model, makes rloo, 4 optimizer steps\n" in text
    assert "stage ppo with algorithm.advantage=rloo, algorithm.prompts_per_iteration=4," in text
    assert "4 prompts x 4 sample(s) = 16 sequences" in text
    assert "  b0             from ppo + reward_model, makes b0, 4 optimizer steps\n" in text
    assert "stage ppo with algorithm.kl.coefficient=0\n" in text
    assert "seeds of ppo" in text
    assert re.search(r"note: rloo: .*needs no critic", text)


def test_the_plan_tells_what_stays_of_the_algorithm_of_the_run() -> None:
    config = run("rloo,x", rloo=ARM | {"algorithm": "rloo"}, x=ARM)
    config.algorithm.kl.place, config.algorithm.clip = KLPlace.loss, 0.1
    facts = {stage.name: stage.facts for stage in make_plan(config).stages}
    assert "keeps algorithm.clip=0.1, algorithm.kl.place=loss of the run" in facts["rloo"]
    assert not any(fact.startswith("keeps") for fact in facts["x"])


ALL = {*RoleName} - {RoleName.environment}


def test_a_critic_is_there_if_any_stage_run_needs_one() -> None:
    rloo = ARM | {"algorithm": "rloo", "set": {"algorithm.prompts_per_iteration": 4}}
    words = ["model.checkpoints.sft=S", "model.checkpoints.reward_model=R", "stages=[ppo]"]
    assert run_roles(composed("+experiment=pocket_tiny", *words)) == ALL
    config = composed("+experiment=pocket_tiny", *words, "stages=[ppo]")
    config.variants = {"rloo": rloo, "more": ARM}
    config.stages = ["rloo"]
    assert run_roles(config) == ALL - {RoleName.critic}
    config.stages = ["rloo", "more"]
    assert run_roles(config) == {*make_plan(config).layout.roles} == ALL
    # each stage run knows the roles beside which it is placed
    assert run_roles(expand(config)[0].config) == ALL


def test_a_variant_may_learn_from_a_teacher_or_by_online_dpo() -> None:
    config = run(
        "ppo,taught,online",
        taught=ARM | {"algorithm": "distill"},
        online={"stage": "online_dpo", "set": {"algorithm.samples_per_prompt": 2}},
    )
    config.model.checkpoints.teacher = "T"
    taught, online = by_name(config)["taught"], by_name(config)["online"]
    assert taught.reads == ("sft", "teacher")
    assert not {RoleName.reward, RoleName.critic} & {*taught.roles}
    assert online.reads == ("sft", "reward_model")
    assert RoleName.reference in online.roles
    plan = make_plan(config)
    assert "the reference is teacher\n" in render_plan(plan)
    assert [stage.makes for stage in plan.stages][-3:] == ["ppo", "taught", "online"]
    assert compared(config) == ["base", "teacher", "sft", "ppo", "taught", "online"]


def test_a_model_of_the_run_may_be_the_teacher() -> None:
    config = run("ppo,taught", taught=ARM | {"algorithm": "distill", "reference": "ppo"})
    taught = by_name(config)["taught"]
    assert taught.inputs == {"sft": "sft", "teacher": "ppo"}
    assert "the reference is ppo\n" in render_plan(make_plan(config))
    config.variants["taught"].pop("reference")
    with pytest.raises(ConfigError, match="and none is given") as caught:
        make_plan(config)
    assert "variants.NAME.reference" in caught.value.fix


def test_memory_is_that_of_the_variant_that_needs_most() -> None:
    plain = make_plan(run("ppo"))
    pretrained = {each.role: each.total for each in plain.memory}
    config = run("ppo,long", long=ARM | {"set": {"algorithm.ema_decay": 0.9}})
    more = {each.role: each.total for each in make_plan(config).memory}
    # a moving average is one more copy of the weights, in 4 bytes each
    grown = more[RoleName.policy] - pretrained[RoleName.policy]
    assert plain.size is not None
    assert grown == 4 * plain.size.parameters
    assert {r: t for r, t in more.items() if r is not RoleName.policy} == {
        r: t for r, t in pretrained.items() if r is not RoleName.policy
    }


def test_a_larger_model_of_the_run_counts_where_it_is_trained_taught_from_and_evaluated() -> None:
    def sizes(stages: str) -> dict[RoleName, int]:
        config = run(
            stages,
            sft_large={"stage": "sft", "from": "large"},
            taught=ARM | {"algorithm": "distill", "reference": "sft_large"},
            usual=ARM | {"algorithm": "distill", "reference": "ppo"},
        )
        return {each.role: each.parameters for each in make_plan(config).memory}

    small = sizes("ppo,usual,evaluate")
    assert len({*small.values()}) == 1
    large = sizes("ppo,pretrain_large,sft_large,taught,usual,evaluate")
    grown = {role for role, count in large.items() if count > 8 * small[role]}
    assert grown == {RoleName.policy, RoleName.reference, RoleName.rollout}
    assert sizes("ppo,pretrain_large,sft_large,taught")[RoleName.rollout] == small[RoleName.rollout]


def test_disk_space_counts_the_model_of_each() -> None:
    one, two = run("ppo"), run("ppo,x", x=ARM)
    less, more = disk_space(one, make_plan(one)), disk_space(two, make_plan(two))
    size = make_plan(one).size
    assert less is not None
    assert more is not None
    assert size is not None
    assert more.models - less.models == 4 * size.parameters
    assert more.checkpoint == less.checkpoint


def test_threads_are_those_of_the_whole_run() -> None:
    config = run("ppo,rloo", rloo=ARM | {"algorithm": "rloo"})
    config.cluster.cores = 6
    runs = by_name(config)
    assert engine_threads(runs["rloo"].config) == engine_threads(config)
    both = [threads_of(runs[n].config, StageName.ppo, RoleName.policy) for n in ("ppo", "rloo")]
    assert both == [max(1, min(3, 64 // 128)), max(1, min(6, 64 // 128))]


def test_models_are_compared_in_the_order_of_the_run() -> None:
    config = run("x,ppo,rm2,evaluate", x=ARM, rm2={"stage": "reward_model"})
    assert compared(config) == ["base", "sft", "x", "ppo"]
    assert compared(by_name(config)["evaluate"].config) == ["base", "sft", "x", "ppo"]
    assert compared(composed("+experiment=pocket_scale")) == [
        "base",
        "base_2x",
        "base_4x",
        "large",
        "sft",
        "sft_8x",
        "ppo",
        "ppo_ptx",
    ]


def test_the_models_that_are_still_read() -> None:
    config = run("ppo,more", more=ARM | {"from": "ppo"})
    finished = ["pretrain", "sft", "reward_model"]
    assert models_read(config, "ppo", finished) == {"sft", "reward_model", "ppo", "ppo_initial"}
    assert models_read(config, "more", [*finished, "ppo"]) == {
        "ppo",
        "reward_model",
        "more_initial",
    }


@pytest.mark.parametrize("chosen", ["none", "endpoint"])
def test_a_judge_that_only_a_variant_asks_is_checked_in_the_plan(chosen: str) -> None:
    arm = {"stage": "ppo", "set": {"algorithm.evaluation_judge": chosen}}
    config = run("ppo,arm", arm=arm)
    config.evaluate.judge = JudgeKind.endpoint
    config.algorithm.evaluate_every = 1
    assert judges_training(config) == (chosen == "endpoint")
    if chosen == "none":
        make_plan(config)
        return
    with pytest.raises(ConfigError, match="no address") as caught:
        make_plan(config)
    assert caught.value.where == "evaluate.endpoint.url"
