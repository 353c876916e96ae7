"""The sizes of a run by hand, at the edges of what divides."""

from __future__ import annotations

import pytest

from orchestrator.batching.batch_sizes import (
    cut_warmups,
    fitting_warmup,
    ppo_arithmetic,
    preference_steps,
    pretraining_examples,
    ranking_steps,
    reward_model_steps,
    sft_rows,
    stage_steps,
    started_prompts,
    warmup_note,
)
from orchestrator.config.cluster import (
    ClusterConfig,
    EngineResources,
    RoleResources,
    RolesConfig,
)
from orchestrator.config.data import DataConfig, DataSourceKind
from orchestrator.config.engines import OptimizerConfig, RolloutConfig, TrainerConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import (
    AlgorithmConfig,
    PretrainConfig,
    PtxConfig,
    RewardModelConfig,
    SFTConfig,
)
from workers.errors import BatchArithmeticError


def config(policy: int = 3, rollout: int = 4, critic: int = 2, **algorithm: object) -> Config:
    given = {"prompts_per_iteration": 12, "samples_per_prompt": 3, "sequences_per_minibatch": 9,
             "iterations": 5, "epochs": 2, "ptx": PtxConfig(documents_per_episode=0.5)}  # fmt: skip
    roles = RolesConfig(
        policy=RoleResources(workers=policy),
        rollout=EngineResources(workers=rollout),
        critic=RoleResources(workers=critic),
    )
    return Config(
        algorithm=AlgorithmConfig(**(given | algorithm)),  # type: ignore[arg-type]
        rollout=RolloutConfig(max_prompt_tokens=20, max_response_tokens=10, overprovision=0.3),
        trainer=TrainerConfig(micro_batch_tokens=60),
        cluster=ClusterConfig(roles=roles),
    )


def test_ppo_by_hand() -> None:
    sizes = ppo_arithmetic(config(), StageName.ppo_ptx)
    assert sizes.sequences_per_iteration == 36  # 12 prompts x 3
    assert started_prompts(config()) == 16  # 12 and 3.6 more
    assert sizes.sequences_per_engine == 12  # 4 of 16 prompts, x 3
    assert sizes.minibatches == 4  # of 9
    assert sizes.steps_per_iteration == 8  # x 2 passes
    assert sizes.optimizer_steps == 40  # x 5 iterations
    assert sizes.episodes == 180
    assert sizes.most_tokens_per_iteration == 36 * 30
    assert sizes.most_micro_batches_per_step == 2  # 3 of 9 a rank, 2 rows of 30 in 60 tokens
    assert (sizes.documents_per_step, sizes.text_rows_per_step) == (4, 0)  # half of 9, rounded
    assert ppo_arithmetic(config(), StageName.ppo).documents_per_step == 0


def test_workers_that_do_not_divide_the_work_are_counted_by_the_busiest() -> None:
    sizes = ppo_arithmetic(config(policy=2, rollout=3), StageName.ppo)
    assert sizes.sequences_per_engine == 18  # 6, 5 and 5 of 16 prompts, x 3
    assert sizes.most_micro_batches_per_step == 3  # 5 and 4 of 9 a rank, 2 rows in a micro-batch


def test_a_row_beyond_the_budget_is_a_micro_batch_of_its_own() -> None:
    small = config()
    small.trainer.micro_batch_tokens = 29
    assert ppo_arithmetic(small, StageName.ppo).most_micro_batches_per_step == 3


@pytest.mark.parametrize(
    ("documents", "rows", "sequences", "expected"),
    [(0.5, 0.0, 9, 4), (0.01, 0.0, 9, 1), (1.0, 2.5, 4, 10), (3.0, 0.1, 4, 1), (2.0, 0.0, 3, 6)],
)
def test_pretraining_examples_beside_sequences(
    documents: float, rows: float, sequences: int, expected: int
) -> None:
    ptx = PtxConfig(documents_per_episode=documents, rows_per_episode=rows)
    assert pretraining_examples(config(ptx=ptx), sequences) == expected


@pytest.mark.parametrize(("rows", "expected"), [(2.0, (0, 18)), (0.5, (0, 4)), (0.0, (27, 0))])
def test_a_step_takes_text_in_documents_or_in_full_rows(
    rows: float, expected: tuple[int, int]
) -> None:
    settings = config(ptx=PtxConfig(documents_per_episode=3.0, rows_per_episode=rows))
    sizes = ppo_arithmetic(settings, StageName.ppo_ptx)
    assert (sizes.documents_per_step, sizes.text_rows_per_step) == expected  # beside 9 sequences
    plain = ppo_arithmetic(settings, StageName.ppo)
    assert (plain.documents_per_step, plain.text_rows_per_step) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "where", "fix"),
    [
        ({"sequences_per_minibatch": 10}, "sequences_per_minibatch", "use 9 or 12"),
        ({"sequences_per_minibatch": 5}, "sequences_per_minibatch", "use 4 or 6"),
        ({"policy": 10}, "sequences_per_minibatch", "to 10 or more"),
        ({"critic": 10}, "sequences_per_minibatch", "cluster.roles.critic.workers"),
        ({"rollout": 37}, "prompts_per_iteration", "cluster.roles.rollout.workers"),
    ],
)
def test_what_does_not_divide_is_refused(settings: dict[str, int], where: str, fix: str) -> None:
    with pytest.raises(BatchArithmeticError) as caught:
        ppo_arithmetic(config(**settings), StageName.ppo)
    assert where in caught.value.where
    assert fix in caught.value.fix


def test_as_many_workers_as_sequences_have_work() -> None:
    assert ppo_arithmetic(config(policy=9, critic=9, rollout=36), StageName.ppo).episodes == 180


def test_rankings_by_hand() -> None:
    settings = RewardModelConfig(prompts=33, prompts_per_step=16, epochs=2)
    pocket = Config(reward_model=settings)
    assert reward_model_steps(pocket) == ranking_steps(pocket, 33) == 6  # 3 steps a pass
    settings.max_rankings = 32
    assert reward_model_steps(pocket) == 4
    settings.max_rankings = 16
    assert reward_model_steps(pocket) == 2  # as many as one step takes
    settings.max_rankings = 15
    with pytest.raises(BatchArithmeticError, match="15 rankings") as caught:
        reward_model_steps(pocket)
    assert caught.value.where == "reward_model.max_rankings"
    settings.max_rankings = 32
    pocket.cluster.roles.critic.workers = 16
    assert reward_model_steps(pocket) == 4
    pocket.cluster.roles.critic.workers = 17
    with pytest.raises(BatchArithmeticError, match="16 prompts cannot give work to 17 critic"):
        reward_model_steps(pocket)
    pocket.cluster.roles.critic.workers = 1
    settings.max_rankings, settings.prompts = 0, 15
    with pytest.raises(BatchArithmeticError) as caught:
        reward_model_steps(pocket)
    assert caught.value.where == "reward_model.prompts"
    settings.prompts, settings.skip_rankings = 40, 24
    assert reward_model_steps(pocket) == 2
    settings.skip_rankings = 25
    with pytest.raises(BatchArithmeticError, match="15 rankings, 25 skipped, are fewer"):
        reward_model_steps(pocket)
    settings.skip_rankings = 40
    with pytest.raises(BatchArithmeticError, match="all 40 rankings are skipped"):
        preference_steps(pocket)


def test_rankings_of_files_tell_their_number_themselves() -> None:
    files = Config(data=DataConfig(source=DataSourceKind.files))
    files.reward_model.prompts = 1  # of the pocket world alone
    assert reward_model_steps(files) is None
    files.reward_model.max_rankings = 40
    assert reward_model_steps(files) is None
    files.reward_model.max_rankings = 15
    with pytest.raises(BatchArithmeticError, match="fewer than one step of 16"):
        reward_model_steps(files)


def test_a_share_of_the_rows_is_text() -> None:
    def rows(demonstrations: int, share: float) -> tuple[int, int]:
        sft = SFTConfig(demonstrations_per_step=demonstrations, pretraining_fraction=share)
        return sft_rows(Config(sft=sft))

    assert rows(32, 0.1) == (29, 3)
    assert rows(4, 0.0) == (4, 0)
    assert rows(4, 0.2) == (3, 1)
    assert rows(4, 0.8) == (1, 3)
    for share in (0.1, 0.9, 1.0):
        with pytest.raises(BatchArithmeticError, match="a share of"):
            rows(4, share)


def test_steps_of_every_stage() -> None:
    whole = config()
    whole.pretrain = PretrainConfig(steps=60, documents_per_step=3)
    whole.sft = SFTConfig(steps=21, demonstrations_per_step=3)
    assert stage_steps(whole, StageName.pretrain) == 60
    assert stage_steps(whole, StageName.pretrain_large) == 60
    assert stage_steps(whole, StageName.sft) == 21
    assert stage_steps(whole, StageName.ppo) == 40
    assert stage_steps(whole, StageName.evaluate) == 0
    whole.sft.epochs = 2
    assert stage_steps(whole, StageName.sft) is None
    whole.sft.demonstrations_per_step = 2
    with pytest.raises(BatchArithmeticError, match="2 demonstrations cannot give work to 3"):
        stage_steps(whole, StageName.sft)
    whole.pretrain.documents_per_step = 2
    with pytest.raises(BatchArithmeticError, match="2 documents cannot give work to 3"):
        stage_steps(whole, StageName.pretrain)


def test_a_warm_up_that_would_not_end_is_cut_to_half() -> None:
    assert [fitting_warmup(w, 10) for w in (0, 9, 10, 99)] == [0, 9, 5, 5]
    assert (fitting_warmup(99, 7), fitting_warmup(1, 1)) == (3, 0)
    long = OptimizerConfig(warmup_steps=10)
    assert warmup_note(long, 11, "x") == warmup_note(long, None, "x") == []
    assert warmup_note(OptimizerConfig(warmup_steps=0), 0, "x") == []
    assert warmup_note(long, 10, "x") == [
        "x.warmup_steps=10 is cut to 5: training takes 10 optimizer step(s)"
    ]


@pytest.mark.parametrize(
    ("policy", "critic", "cut"),
    [(23, 39, []), (24, 0, ["policy_optimizer"]), (0, 40, ["critic_optimizer"]),
     (24, 40, ["policy_optimizer", "critic_optimizer"])],
)  # fmt: skip
def test_the_policy_warms_up_once_it_learns(policy: int, critic: int, cut: list[str]) -> None:
    # 40 steps, of which the first two iterations' 16 teach the critic alone
    settings = config(
        critic_warmup_iterations=2,
        policy_optimizer=OptimizerConfig(warmup_steps=policy),
        critic_optimizer=OptimizerConfig(warmup_steps=critic),
    )
    settings.stages = [StageName.ppo, StageName.ppo_ptx]
    notes = cut_warmups(settings)
    assert [note.split(".")[1] for note in notes] == cut


def test_warm_ups_of_the_other_stages() -> None:
    whole = config()
    whole.stages = [StageName.pretrain, StageName.sft, StageName.reward_model, StageName.evaluate]
    whole.pretrain = PretrainConfig(steps=3, documents_per_step=3)
    whole.sft = SFTConfig(steps=4, demonstrations_per_step=3)
    whole.reward_model = RewardModelConfig(prompts=33, prompts_per_step=16)
    for optimizer in (whole.pretrain.optimizer, whole.sft.optimizer, whole.reward_model.optimizer):
        optimizer.warmup_steps = 6
    found = [note.partition(":")[0] for note in cut_warmups(whole)]
    assert found == [
        "pretrain.optimizer.warmup_steps=6 is cut to 1",
        "sft.optimizer.warmup_steps=6 is cut to 2",
        "reward_model.optimizer.warmup_steps=6 is cut to 1",
    ]
