"""The plan's arithmetic against hand figures, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composing import composed
from safetensors.torch import save_file

from orchestrator.batching.batch_sizes import cut_warmups, ppo_arithmetic, stage_steps
from orchestrator.config.cluster import RoleName
from orchestrator.config.data_sets import data_set
from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.gpu_memory import check_gpu_memory
from orchestrator.planning.model_sizes import RoleMemory, checkpoint_size, pocket_size
from orchestrator.planning.placement import place_roles
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.worker_specs import optimizer_spec
from workers.errors import (
    BatchArithmeticError,
    BrokenCheckpointError,
    ConfigError,
    RehearsalError,
    ResourceError,
)


def pocket(*overrides: str) -> Config:
    return composed("+experiment=pocket", *overrides)


def refused(kind: type[RehearsalError], *overrides: str) -> RehearsalError:
    with pytest.raises(kind) as caught:
        make_plan(pocket(*overrides))
    assert caught.value.fix
    assert caught.value.where
    return caught.value


def test_ppo_arithmetic_by_hand():
    config = pocket(
        "algorithm.iterations=10", "algorithm.prompts_per_iteration=12",
        "algorithm.samples_per_prompt=4", "algorithm.sequences_per_minibatch=16",
        "algorithm.epochs=2", "algorithm.ptx.documents_per_episode=0.5",
        "cluster.roles.rollout.workers=5", "cluster.roles.policy.workers=2",
        "rollout.max_prompt_tokens=30", "rollout.max_response_tokens=20",
        "trainer.micro_batch_tokens=150",
    )  # fmt: skip
    sizes = ppo_arithmetic(config, StageName.ppo_ptx)
    assert sizes.sequences_per_iteration == 48
    assert sizes.sequences_per_engine == 12  # 3 of 12 prompts, 4 samples each
    assert sizes.minibatches == 3
    assert sizes.steps_per_iteration == 6
    assert sizes.optimizer_steps == 60
    assert sizes.episodes == 480
    assert sizes.most_tokens_per_iteration == 2400
    assert sizes.most_micro_batches_per_step == 3  # 8 rows a rank, 3 rows of 50 tokens fit
    assert sizes.documents_per_step == 8
    assert ppo_arithmetic(config, StageName.ppo).documents_per_step == 0
    assert sizes.text_rows_per_step == 0
    config.algorithm.ptx.rows_per_episode = 8.0
    config.pretrain.row_tokens = 48
    sizes = ppo_arithmetic(config, StageName.ppo_ptx)
    assert (sizes.documents_per_step, sizes.text_rows_per_step) == (0, 128)
    assert ppo_arithmetic(config, StageName.ppo).text_rows_per_step == 0


def test_steps_of_every_stage():
    steps = {stage.name: stage.optimizer_steps for stage in make_plan(pocket()).stages}
    assert steps == {
        StageName.pretrain: 1500,
        StageName.sft: 150,
        StageName.reward_model: 256,  # twice 2,048 prompts in steps of 16
        StageName.ppo: 96,  # 24 iterations of 128 / 32
        StageName.ppo_ptx: 96,
        StageName.evaluate: 0,
    }


def test_steps_of_reward_modelling_are_those_of_the_rankings_that_train():
    def steps(*overrides: str) -> int | None:
        return stage_steps(pocket(*overrides), StageName.reward_model)

    assert steps("reward_model.max_rankings=100") == 14  # twice 100 rankings in steps of 16
    assert steps("reward_model.max_rankings=9999") == 256
    files = ["data=files", "data.files.rankings=R"]
    assert steps(*files, "reward_model.max_rankings=100") is None  # there may be fewer


def test_minibatches_must_divide_the_batch():
    error = refused(BatchArithmeticError, "algorithm.sequences_per_minibatch=48")
    assert "128 sequences" in error.what
    assert "32 or 64" in error.fix


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        (ConfigError, ["model.pocket.heads=8", "model.pocket.kv_heads=8"], "heads of size 16"),
        (BatchArithmeticError,
         ["cluster.roles.critic.workers=33", "reward_model.prompts_per_step=64"],
         "32 sequences"),
        (BatchArithmeticError, ["sft.demonstrations_per_step=1", "cluster.roles.policy.workers=2"],
         "1 demonstrations"),
        (BatchArithmeticError, ["reward_model.prompts=8"], "fewer than one step"),
        (BatchArithmeticError, ["reward_model.max_rankings=15"], "fewer than one step of 16"),
        (BatchArithmeticError, ["rollout.max_prompt_tokens=110"], "128 positions"),
        (BatchArithmeticError, ["rollout.parity_tokens=25"], "max_response_tokens"),
        (BatchArithmeticError, ["pretrain.row_tokens=200"],
         "pretrain reads rows of up to 200 tokens; its model has 128"),
        (BatchArithmeticError, ["sft.pack_tokens=129"], "sft reads rows of up to 129"),
        (ConfigError, ["stages=[]"], "no stages"),
        (ConfigError, ["stages=[pretrain,sft,sft]"], "stages names sft twice"),
        (ConfigError, ["stages=[sft]"], "'base'"),
        (ConfigError, ["stages=[sft,pretrain]"], "later stage"),
        (ConfigError, ["stages=[pretrain,sft,ppo]"], "'reward_model'"),
        (ConfigError, ["data=files"], "not given"),
        (ConfigError, ["data.files.prompts=P"], "reads the pocket world"),
        (ConfigError, ["stages=[evaluate]"], "no model to evaluate"),
        (ConfigError, ["rollout=transformers", "rollout.tensor_parallel_size=2"], "one device"),
        (ConfigError, ["reward.micro_batch_tokens=0"], "is out of range"),
        (ConfigError, ["algorithm.ema_decay=1"], "is out of range"),
        (ConfigError, ["algorithm.ema_decay=-0.1"], "is out of range"),
        (ConfigError, ["sft.optimizer.beta2=1"], "is out of range"),
        (ConfigError, ["cluster=one_gpu", "cluster.roles.critic.gpus=1.5"], "gpus=1.5"),
        (ConfigError, ["reward.kind=function"], "does not name a function"),
        (ConfigError, ["reward.kind=functoin"], "no reward source 'functoin'"),
        (ConfigError, ["rollout.precision=bf16"], "bf16"),
        (ConfigError, ["algorithm.old_logprobs=rollout", "rollout.parity_tolerance=0.002"],
         "is too large for that"),
        (ConfigError, ["algorithm.old_logprobs=rollout", "algorithm.staleness=1"],
         "another version"),
        (ConfigError, ["trainer.logits_mib=0"], "is out of range"),
        (ConfigError, ["trainer.offload=parameters"], "keeps whole weights"),
        (ConfigError, ["model.lora.rank=4", "model.freeze=[embeddings]"], "with adapters"),
        (ConfigError, ["sft.epochs=1"], "no pass over them"),
        (BatchArithmeticError, ["sft.pretraining_fraction=0.01"], "0 documents"),
        (ConfigError, ["algorithm.critic_warmup_iterations=24"], "24 of 24"),
        (ResourceError, ["rollout.kv_cache_mib=1", "model.pocket.hidden_size=1024"], "KV cache"),
        (ResourceError, ["cluster.roles.policy.gpus=1"], "do not fit"),
        (ResourceError, ["cluster=one_gpu", "cluster.roles.critic.gpus=0"], "0 GPUs on a cuda"),
        (ResourceError, ["cluster=one_gpu", "cluster.roles.critic.gpus=0.3"], "1.1 GPUs"),
        (ResourceError, ["cluster=node_8gpu", "rollout.tensor_parallel_size=2"], "over 2 GPUs"),
    ],
)  # fmt: skip
def test_refused(kind: type[RehearsalError], overrides: list[str], words: str):
    assert words in refused(kind, *overrides).what


@pytest.mark.parametrize(
    ("overrides", "cut"),
    [
        (["sft.steps=11"], []),
        (["sft.steps=10"], ["sft.optimizer.warmup_steps=10 is cut to 5"]),
        (["sft.steps=1"], ["sft.optimizer.warmup_steps=10 is cut to 0"]),
        (["pretrain.steps=7"], ["pretrain.optimizer.warmup_steps=50 is cut to 3"]),
        (["reward_model.max_rankings=80"], ["reward_model.optimizer.warmup_steps=10 is cut to 5"]),
        (["algorithm.critic_warmup_iterations=22"],
         ["algorithm.policy_optimizer.warmup_steps=10 is cut to 4"]),
        (["algorithm.iterations=2", "algorithm.sequences_per_minibatch=64"],
         ["algorithm.policy_optimizer.warmup_steps=10 is cut to 2",
          "algorithm.critic_optimizer.warmup_steps=10 is cut to 2"]),
    ],
)  # fmt: skip
def test_a_warm_up_that_would_not_end_is_cut_to_half_of_the_steps_and_said(
    overrides: list[str], cut: list[str]
):
    notes = [note for note in make_plan(pocket(*overrides)).notes if "warmup_steps" in note]
    assert [note.split(":")[0] for note in notes] == cut


def test_the_shipped_experiments_keep_their_warm_ups():
    for experiment in ("pocket", "pocket_tiny", "pocket_scale"):
        assert cut_warmups(composed(f"+experiment={experiment}")) == []


@pytest.mark.parametrize(
    ("warmup", "steps", "taken"),
    [(0, 1, 0), (10, 11, 10), (10, 10, 5), (80, 9, 4), (3, 1, 0)],
)
def test_the_worker_gets_the_warm_up_that_fits(warmup: int, steps: int, taken: int):
    optimizer = OptimizerConfig(warmup_steps=warmup)
    assert optimizer_spec(optimizer, steps).warmup_steps == taken


def test_the_nearest_divisors_of_a_huge_batch_are_found_at_once():
    error = refused(
        BatchArithmeticError, "algorithm.prompts_per_iteration=1000000000",
        "algorithm.samples_per_prompt=1000", "algorithm.sequences_per_minibatch=48",
    )  # fmt: skip
    assert "use 40 or 50" in error.fix


def test_files_of_a_stage_must_be_given():
    with pytest.raises(ConfigError) as caught:
        make_plan(composed("+experiment=ppo_ptx", "model.checkpoints.sft=S",
                           "model.checkpoints.reward_model=M", "data.files.prompts=P"))  # fmt: skip
    assert caught.value.where == "data.files.pretraining"


@pytest.mark.parametrize(
    ("stages", "unused"),
    [
        ("[sft]", ["rankings", "prompts", "evaluation_prompts", "pretraining", "sets.more"]),
        ("[pretrain]", ["demonstrations", "rankings", "prompts", "evaluation_prompts",
                        "sets.more"]),
        ("[reward_model]", ["prompts", "evaluation_prompts", "pretraining"]),
        ("[ppo]", ["demonstrations", "rankings", "pretraining", "sets.more"]),
        ("[ppo_ptx]", ["demonstrations", "rankings", "sets.more"]),
        ("[evaluate]", ["demonstrations", "rankings", "prompts", "sets.more"]),
        ("[sft,reward_model,ppo,evaluate]", []),
    ],
)  # fmt: skip
def test_data_that_no_stage_uses_is_noted(stages: str, unused: list[str]):
    config = composed(
        "data=files", "model=checkpoint", f"stages={stages}", "model.checkpoints.initial=I",
        "model.checkpoints.base=B", "model.checkpoints.sft=S", "model.checkpoints.reward_model=M",
        "reward_model.optimizer.warmup_steps=0", *GIVEN, "data.files.evaluation_prompts=E",
        "data.files.max_prompt_tokens=64",
    )  # fmt: skip
    config.data.sets["more"] = data_set("more", {"kind": "comparisons", "path": "C"})
    notes = make_plan(config).notes
    noted = [note.split()[0] for note in notes if "no stage of this run uses" in note]
    assert noted == [f"data.{n}" if "." in n else f"data.files.{n}" for n in unused]


def test_what_replaces_held_out_prompts_or_mixes_text_in_is_used():
    line = ["data=files", "model=checkpoint", "model.checkpoints.base=B", *GIVEN,
            "data.files.max_prompt_tokens=64"]  # fmt: skip
    sft = make_plan(composed(*line, "stages=[sft]", "sft.pretraining_fraction=.1"))
    assert "data.files.pretraining" not in str(sft.notes)
    compared = make_plan(composed(*line, "stages=[evaluate]"))
    assert "data.files.prompts" not in str(compared.notes)  # a part of them is held out
    assert "data.files.rankings is read, but no stage of this run uses comparisons" in (
        compared.notes
    )


def test_prompts_of_files_must_fit_the_engines():
    with pytest.raises(BatchArithmeticError, match="may have 1024 tokens, those of the engines 64"):
        make_plan(composed("+experiment=evaluate", "model.checkpoints.sft=S",
                           "data.files.prompts=P", "rollout.max_prompt_tokens=64"))  # fmt: skip


def test_only_the_roles_of_the_stages_are_placed():
    plan = make_plan(pocket("stages=[pretrain,sft]"))
    assert [role.value for role in plan.layout.roles] == ["policy"]
    assert plan.layout.cpus == 0.25


def test_parameters_equal_the_model_that_transformers_makes():
    from transformers import LlamaConfig, LlamaForCausalLM

    for overrides in ([], ["model.pocket.kv_heads=2", "model.pocket.tie_word_embeddings=false"]):
        shape = pocket(*overrides).model.pocket
        size = pocket_size(shape)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size.vocabulary,
                hidden_size=shape.hidden_size,
                intermediate_size=shape.intermediate_size,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                tie_word_embeddings=shape.tie_word_embeddings,
            )
        )
        assert size.parameters == sum(p.numel() for p in model.parameters())


def checkpoint(folder: Path, **shape: object) -> Path:
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3,
        "vocab_size": 50, "max_position_embeddings": 4096, **shape,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v}))
    save_file({"a": torch.zeros(5, 7), "b": torch.zeros(11)}, folder / "model-1.safetensors")
    save_file({"c": torch.zeros(2, 2, dtype=torch.bfloat16)}, folder / "model-2.safetensors")
    save_file({"c": torch.zeros(9, 9)}, folder / "consolidated.safetensors")  # not in the index
    index = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder


def test_checkpoint_size_reads_headers(tmp_path: Path):
    size = checkpoint_size(checkpoint(tmp_path / "m", num_key_value_heads=1))
    assert size is not None
    assert size.parameters == 5 * 7 + 11 + 4
    assert (size.vocabulary, size.positions) == (50, 4096)
    assert size.kv_numbers_per_token == 2 * 3 * 1 * 4
    assert checkpoint_size(tmp_path / "absent") is None
    with pytest.raises(BrokenCheckpointError):
        checkpoint_size(checkpoint(tmp_path / "broken", model_type=None))


SHORT = ["data.files.max_prompt_tokens=200", "data.files.max_completion_tokens=56"]
GIVEN = ["data.files.demonstrations=D", "data.files.rankings=R", "data.files.prompts=P",
         "data.files.pretraining=T"]  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "name", "stage"),
    [
        ("small_sft", "initial", "pretrain"),
        ("sft", "base", "sft"),
        ("reward_model", "sft", "reward_model"),
        ("ppo_ptx", "sft", "ppo_ptx"),
        ("evaluate", "ppo", "evaluate"),
    ],
)
def test_rows_of_files_must_fit_the_model(tmp_path: Path, experiment: str, name: str, stage: str):
    model = checkpoint(
        tmp_path / "m", model_type="gpt2", n_positions=256, max_position_embeddings=None
    )
    line = [
        f"+experiment={experiment}", "model.checkpoints.reward_model=M", *GIVEN,
        f"model.checkpoints.{name}={model}", "rollout=transformers",
        "rollout.max_prompt_tokens=200", "rollout.max_response_tokens=56",
    ]  # fmt: skip
    assert make_plan(composed(*line, *SHORT)).stages  # 200 + 56 = 256
    with pytest.raises(BatchArithmeticError) as caught:
        make_plan(composed(*line, SHORT[0], "data.files.max_completion_tokens=57"))
    assert f"stage {stage} reads rows of up to 257 tokens; its model has 256" in caught.value.what
    assert caught.value.where == "data.files.max_completion_tokens"
    assert "to 256 together" in caught.value.fix


def test_full_rows_of_pretraining_text_must_fit_the_fine_tuned_model(tmp_path: Path):
    model = checkpoint(tmp_path / "m", max_position_embeddings=256)
    line = ["+experiment=sft", f"model.checkpoints.base={model}", *GIVEN, *SHORT,
            "pretrain.row_tokens=257", "sft.pretraining_fraction=0.1"]  # fmt: skip
    assert make_plan(composed(*line)).stages  # by documents, which are short
    with pytest.raises(BatchArithmeticError) as caught:
        make_plan(composed(*line, "sft.pretraining_full_rows=true"))
    assert "stage sft reads rows of up to 257 tokens; its model has 256" in caught.value.what
    assert caught.value.where == "pretrain.row_tokens"


def test_what_ppo_reads_of_files_are_prompts(tmp_path: Path):
    model = checkpoint(tmp_path / "m", max_position_embeddings=256)
    line = ["+experiment=ppo", f"model.checkpoints.sft={model}", "rollout=transformers",
            "model.checkpoints.reward_model=M", "data.files.prompts=P", SHORT[0],
            "rollout.max_prompt_tokens=200", "rollout.max_response_tokens=56"]  # fmt: skip
    assert make_plan(composed(*line, "data.files.max_completion_tokens=1024")).stages


def test_zero_stages_divide_what_they_should():
    parameters = pocket_size(pocket().model.pocket).parameters

    def policy_bytes(stage: int, ranks: int, *more: str) -> float:
        config = pocket(f"trainer=zero{stage}", f"cluster.roles.policy.workers={ranks}", *more)
        plan = make_plan(config)
        return next(m.model for m in plan.memory if m.role.value == "policy") / parameters

    assert policy_bytes(1, 1) == pytest.approx(16)  # weights, gradients, two moments, 4 bytes each
    assert policy_bytes(1, 2) == pytest.approx(12)
    assert policy_bytes(2, 2) == pytest.approx(10)
    assert policy_bytes(3, 2) == pytest.approx(8)
    assert policy_bytes(3, 2, "algorithm.ema_decay=0.9") == pytest.approx(12)
    # Adapters: only the weights, of which rank-r factors are a small part.
    assert policy_bytes(1, 1, "model.lora.rank=8") == pytest.approx(4)


def test_the_plan_shows_the_arithmetic():
    text = render_plan(make_plan(pocket("seed=7")))
    for words in ("seed 7", "3,072 episodes", "4 minibatches of 32", "node 0", "critic 0"):
        assert words in text


def test_generation_ahead_is_in_the_plan_and_asks_for_a_cap():
    said = render_plan(make_plan(pocket("algorithm.staleness=1", "rollout.overprovision=0.1")))
    assert "runs 1 iteration(s) ahead of training" in said
    assert "13 more prompts are started" in said
    assert "without algorithm.importance_cap" in said
    capped = render_plan(make_plan(pocket("algorithm.staleness=1", "algorithm.importance_cap=2.0")))
    assert "importance_cap" not in capped
    assert "ahead" not in render_plan(make_plan(pocket()))


@pytest.mark.parametrize("key", ["inflight_updates", "join_running"])
def test_what_needs_sequences_under_way_needs_staleness(key: str):
    error = refused(ConfigError, f"rollout.{key}=true")
    assert error.where == f"rollout.{key}"
    make_plan(pocket(f"rollout.{key}=true", "algorithm.staleness=1"))


EXTRA = "cluster.roles.rollout.max_workers=3"


@pytest.mark.parametrize(
    ("line", "says", "fix"),
    [
        ((), "a local cluster has room for the reserved 1 engine", "cluster.address=HOST:PORT"),
        (("cluster=one_gpu", "cluster.address=auto", "rollout.sleep=true"), "takes turns",
         "rollout.sleep=false"),
        (("cluster.address=auto", "cluster.roles.rollout.workers=4"), "max_workers=3 is below",
         "at least 4"),
    ],
)  # fmt: skip
def test_engines_that_can_not_join_are_refused(line: tuple[str, ...], says: str, fix: str):
    error = refused(ConfigError, EXTRA, *line)
    assert says in error.what
    assert error.where == "cluster.roles.rollout.max_workers"
    assert fix in error.fix


def test_engines_that_may_join_are_in_the_plan_and_not_in_the_reservation():
    plan = make_plan(pocket(EXTRA, "cluster.address=auto"))
    assert plan.layout == make_plan(pocket("cluster.address=auto")).layout
    assert "up to 3 engines share the sequences: those above 1 join" in render_plan(plan)
    assert "engines share" not in render_plan(make_plan(pocket()))


def test_checkpoints_are_compared_by_a_metric_that_there_is():
    error = refused(ConfigError, "run.checkpoint.keep_best=ppo/gold")
    assert (error.where, "ppo/gold_mean" in error.fix) == ("run.checkpoint.keep_best", True)
    refused(ConfigError, "run.checkpoint.keep_best=ppo/policy_loss")  # of no weights in particular
    best = "run.checkpoint.keep_best=ppo/gold_mean"
    error = refused(ConfigError, best, "algorithm.evaluate_every=0")
    assert "evaluate_every" in error.fix
    make_plan(pocket(best))


TURNS = ("cluster=one_gpu", "trainer.zero_stage=2", "rollout.sleep=true")
TWO_RANKS = ("cluster.gpus_per_node=2", "cluster.roles.critic.workers=2")


@pytest.mark.parametrize("key", ["rollout.sleep", "trainer.rest_on_host"])
def test_turns_on_one_gpu_need_a_gpu_and_its_engine(key: str):
    error = refused(ConfigError, f"{key}=true")
    assert error.where == key
    assert "one_gpu" in error.fix
    for override, words in (
        ("algorithm.staleness=1", "engines sample while the trainers work"),
        ("rollout.stream_sequences=8", "while engines sample the rest"),
        ("rollout.engine=transformers", "only vLLM"),
    ):
        assert words in refused(ConfigError, *TURNS, f"{key}=true", override).what


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.sleep=false"], "never take it"),
        (["trainer.offload=optimizer"], "in host memory anyway"),
        (["trainer.zero_stage=1", *TWO_RANKS], "zero_stage=1 in bf16"),
        (["trainer.zero_stage=3", *TWO_RANKS], "zero_stage=3 in bf16"),
        (["trainer.zero_stage=3", "trainer.precision=fp32", *TWO_RANKS], "zero_stage=3 in fp32"),
    ],
)
def test_state_that_cannot_rest_is_refused(overrides: list[str], words: str):
    error = refused(ConfigError, *TURNS, "trainer.rest_on_host=true", *overrides)
    assert error.where == "trainer.rest_on_host"
    assert words in error.what


def test_engines_of_vllm_do_not_share_a_gpu_with_each_other():
    two = ("cluster=one_gpu", "cluster.roles.rollout.workers=2", "cluster.roles.rollout.gpus=0.1")
    error = refused(ResourceError, *two)
    assert error.where == "cluster.roles.rollout.workers"
    assert "2 engines on one GPU" in error.what
    assert "max_concurrent_sequences" in error.fix
    make_plan(pocket(*two, "cluster.gpus_per_node=2"))  # one on each
    make_plan(pocket(*two, "rollout.engine=transformers"))  # measures nothing


@pytest.mark.parametrize("stage", [1, 3])
def test_the_state_of_a_single_rank_rests_at_every_stage(stage: int):
    overrides = ("trainer.rest_on_host=true", f"trainer.zero_stage={stage}")
    assert "rests in host memory" in render_plan(make_plan(pocket(*TURNS, *overrides)))


def test_plan_tells_who_takes_turns():
    text = render_plan(make_plan(pocket(*TURNS, "trainer.rest_on_host=true")))
    assert "engines sleep while the trainers work" in text
    assert "optimizer state rests in host memory" in text
    assert "sleep" not in render_plan(make_plan(pocket(*TURNS[:2])))
    alone = pocket("cluster=node_8gpu", "rollout.sleep=true")
    assert "no other role is on the engines' GPUs" in render_plan(make_plan(alone))


def test_of_roles_that_take_turns_the_larger_turn_must_fit():
    gib = 1 << 30

    def role(name: RoleName, model: int, working: int, yielded: int = 0) -> RoleMemory:
        return RoleMemory(
            role=name, workers=1, parameters=1, model=model * gib, least=model * gib,
            working=working * gib, host=0, loading=0, on_gpu=True, yielded=yielded * gib,
        )  # fmt: skip

    def notes(*overrides: str, yielded: int = 0) -> list[str]:
        config = pocket(
            "cluster=one_gpu", "cluster.gpu_memory_gib=100", "rollout.gpu_memory_fraction=0.5",
            *overrides,
        )  # fmt: skip
        memory = [
            role(RoleName.rollout, 10, 40),
            role(RoleName.policy, 50, 10, yielded),
            role(RoleName.reference, 10, 5),
        ]
        return check_gpu_memory(config, make_plan(pocket("cluster=one_gpu")).layout, memory)

    with pytest.raises(ResourceError, match="needs 125 of 100 GiB"):  # 50 + 60 + 15
        notes()
    with pytest.raises(ResourceError, match="needs 115 of 100 GiB"):  # 50 + 50 + 15
        notes("rollout.sleep=true")
    (narrow,) = notes("rollout.sleep=true", yielded=20)  # 50 + 30 + 15, and 60 + 15 in training
    assert "needs 95 of 100 GiB" in narrow
    assert notes("rollout.sleep=true", yielded=45) == []  # 50 + 5 + 15, and 60 + 15


def test_memory_is_added_up_per_shared_gpu():
    gib = 1 << 30
    roles = {name: {"workers": 2, "gpus": 0.4} for name in ("rollout", "policy")}
    config = pocket(
        "cluster=one_gpu", "cluster.gpus_per_node=2", "cluster.gpu_memory_gib=100",
        "rollout.gpu_memory_fraction=0.5",
        *(f"cluster.roles.{r}.{k}={v}" for r, of in roles.items() for k, v in of.items()),
    )  # fmt: skip
    layout = place_roles(config.cluster, [RoleName.rollout, RoleName.policy, RoleName.reward])
    memory = [
        RoleMemory(
            role=name, workers=workers, parameters=1, model=model * gib, least=model * gib,
            working=0, host=0, loading=0, on_gpu=True,
        )
        for name, workers, model in (
            (RoleName.rollout, 2, 0), (RoleName.policy, 2, 30), (RoleName.reward, 1, 25)
        )
    ]  # fmt: skip
    # 50 + 30 + 25 on the reward model's GPU, though both GPUs together have room for 185.
    with pytest.raises(ResourceError, match="needs 105 of 100 GiB"):
        check_gpu_memory(config, layout, memory)


def test_host_memory_holds_what_rests():
    overrides = ("cluster=one_gpu", "trainer.zero_stage=2")
    plain = {each.role: each for each in make_plan(pocket(*overrides)).memory}
    resting = make_plan(pocket(*TURNS, "trainer.rest_on_host=true")).memory
    for each in resting:
        more, parameters = each.host - plain[each.role].host, each.parameters
        # bf16: two bytes of an engine's weights; master, two moments and a gradient of a trainer's
        factor = {RoleName.rollout: 2, RoleName.policy: 16, RoleName.critic: 16}.get(each.role, 0)
        assert more == factor * parameters, each.role
        assert each.yielded == (more if each.role is not RoleName.rollout else 0)


def test_plans_are_equal_for_equal_configurations():
    first = make_plan(pocket("run.dir=x"))
    assert first == make_plan(pocket("run.dir=x"))
    assert first != replace(first, seed=1)


def test_what_a_joined_cluster_has_and_what_the_plan_leaves_of_it_is_said():
    sizes = "cluster.sizes=4x1+8x0+4x1"
    plan = make_plan(pocket("cluster=cpu_nodes", "cluster.cpus_per_node=6", sizes))
    assert plan.notes[:2] == (
        "the cluster has 2 x (4 CPUs, 1 GPUs), 1 x (8 CPUs, 0 GPUs); the plan may use "
        "2 x (4 CPUs, 1 GPUs)",
        "cluster.cpus_per_node=6 is more than a node has: the plan uses what is there",
    )
    assert not any("cluster.gpus_per_node=" in note for note in plan.notes)
    assert len(plan.layout.nodes) == 2
