"""Which key arrives where: the table behind `tests/unit/orchestrator/stages/test_wiring.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.config.cluster import RoleName
from wiring.unseen import UNSEEN as UNSEEN
from wiring.world import World, tokens_of


class Row(NamedTuple):
    """One key."""

    key: str
    typed: str  # the value as a command line has it
    expected: Any  # what is found at its destination
    see: Callable[[World], Any]  # the destination


class Scenario(NamedTuple):
    """Keys that are set together."""

    rows: list[Row]
    stages: tuple[str, ...] = ()  # that run over fakes
    given: tuple[str, ...] = ()  # further words of the command line


def optimizer(key: str, number: int, see: Callable[[World], Any], warmup: int) -> list[Row]:
    """The rows of one optimizer; `number` makes its values its own."""
    n = number
    return [
        Row(f"{key}.learning_rate", f"{1.5 + n}e-4", (1.5 + n) * 1e-4, lambda w: see(w).learning_rate),
        Row(f"{key}.beta1", f"0.8{n}1", 0.8 + n / 100 + 0.001, lambda w: see(w).betas[0]),
        Row(f"{key}.beta2", f"0.7{n}2", 0.7 + n / 100 + 0.002, lambda w: see(w).betas[1]),
        Row(f"{key}.warmup_steps", f"{warmup}", warmup, lambda w: see(w).warmup_steps),
    ]  # fmt: skip


def model_size(key: str, number: int, sizes: tuple[int, ...]) -> list[Row]:
    """The rows of one model that is made from scratch; `number` counts them as they are made."""
    names = (
        "hidden_size",
        "layers",
        "heads",
        "kv_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    rows = [
        Row(f"{key}.{name}", f"{size}", size, lambda w, name=name: w.made[number][name])
        for name, size in zip(names, sizes, strict=True)
    ]
    tied = Row(
        f"{key}.tie_word_embeddings",
        "false",
        False,
        lambda w: w.made[number]["tie_word_embeddings"],
    )
    return [*rows, tied]  # fmt: skip


def role(name: str, workers: int, cpus: float, threads: int) -> list[Row]:
    """The rows of a role group's resources."""
    key, role_name = f"cluster.roles.{name}", RoleName(name)
    return [
        Row(f"{key}.workers", f"{workers}", workers, lambda w: w.launch(name).workers),
        Row(f"{key}.cpus", f"{cpus}", cpus, lambda w: w.resources(role_name)["num_cpus"]),
        Row(f"{key}.gpus", f"{cpus / 4}", cpus / 4, lambda w: w.resources(role_name)["num_gpus"]),
        Row(f"{key}.threads", f"{threads}", f"{threads}",
            lambda w: w.resources(role_name)["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]),
    ]  # fmt: skip


def count(batch: Any) -> int:
    """Rows of a supervised call's micro-batches."""
    return sum(len(b) for step in batch["steps"] for b in step.micro_batches)


MAIN = [
    Row("seed", "7", 1, lambda w: len({w.engine.seed, w.world_seed()}) - 1),
    *optimizer("pretrain.optimizer", 1, lambda w: w.spec("pretrain", "policy").optimizer, 3),
    *optimizer("sft.optimizer", 2, lambda w: w.spec("sft", "policy").optimizer, 2),
    *optimizer("reward_model.optimizer", 3, lambda w: w.spec("reward_model", "critic").optimizer, 1),
    *optimizer("algorithm.policy_optimizer", 4, lambda w: w.spec("ppo_ptx", "policy").optimizer, 5),
    *optimizer("algorithm.critic_optimizer", 5, lambda w: w.spec("ppo_ptx", "critic").optimizer, 4),
    *model_size("model.pocket", 0, (24, 3, 6, 2, 40, 96)),
    *model_size("model.large", 1, (36, 5, 9, 3, 56, 112)),
    Row("pretrain.steps", "6", 6, lambda w: w.spec("pretrain", "policy").optimizer.total_steps),
    Row("pretrain.documents_per_step", "9", 0, lambda w: w.run.source.documents.index(("train", 0, 9))),
    Row("pretrain.row_tokens", "64", 64, lambda w: max(w.row_lengths("pretrain"))),
    Row("sft.steps", "4", 4, lambda w: w.spec("sft", "policy").optimizer.total_steps),
    Row("sft.demonstrations_per_step", "10", [10] * 4, lambda w: w.lengths("sft")),
    Row("sft.pretraining_fraction", "0.3", 4, lambda w: sum(d == ("train", 3 * i, 3) for i in range(4)
        for d in w.run.source.documents[w.sft_from:])),
    Row("sft.validation_demonstrations", "11", 11, lambda w: count(w.facts("sft", "policy.evaluate_supervised")[0])),
    Row("sft.dropout", "0.37", 0.37, lambda w: w.spec("sft", "policy").dropout),
    Row("reward_model.prompts", "14", 14, lambda w: w.metric("reward_model/heldout_prompts") and w.ranked()[0]),
    Row("reward_model.heldout_prompts", "9", 23, lambda w: w.ranked()[1]),
    Row("reward_model.min_completions", "3", 3, lambda w: min(w.completions())),
    Row("reward_model.max_completions", "5", 5, lambda w: max(w.completions())),
    Row("reward_model.base_fraction", "0.41", {1, 2}, lambda w: w.of_base()),
    Row("reward_model.temperature", "1.3", 1.3, lambda w: w.facts("reward_model", "rollout.generate")[0]["sampling"].temperature),
    Row("reward_model.epochs", "2", 8, lambda w: w.spec("reward_model", "critic").optimizer.total_steps),
    Row("reward_model.prompts_per_step", "4", 4, lambda w: max(
        s.rankings for f in w.facts("reward_model", "critic.train_rankings") for s in f["steps"])),
    Row("reward_model.margin", "ranks", {1.0}, lambda w: {float(r.levels.max() - r.levels.min()) for f in w.facts(
        "reward_model", "critic.train_rankings") for s in f["steps"] for b in s.micro_batches for r in b
        if len(set(r.ranks.tolist())) == len(r.ranks)}),
    Row("reward_model.bias_demonstrations", "13", 13, lambda w: len(w.facts("reward_model", "critic.score")[0]["batch"])),
    Row("algorithm.iterations", "4", 4, lambda w: len(w.facts("ppo_ptx", "critic.update"))),
    Row("algorithm.critic_warmup_iterations", "1", 3, lambda w: len(w.facts("ppo_ptx", "policy.update"))),
    Row("algorithm.prompts_per_iteration", "6", 6, lambda w: w.generated()[0]["delivery"].groups),
    Row("algorithm.samples_per_prompt", "2", 2, lambda w: len(w.generated()[0]["requests"][0].ids)),
    Row("rollout.overprovision", "0.45", 9, lambda w: len(w.generated()[0]["requests"])),
    Row("rollout.stream_sequences", "5", 5, lambda w: w.generated()[0]["delivery"].part_sequences),
    Row("algorithm.sequences_per_minibatch", "3", [3] * 8, lambda w: [s.ppo.sequences for s in w.update("policy")]),
    Row("algorithm.epochs", "2", 8, lambda w: len(w.update("critic"))),
    Row("algorithm.gamma", "0.93", 0.93, lambda w: w.shaping().gamma),
    Row("algorithm.lam", "0.89", 0.89, lambda w: w.shaping().lam),
    Row("algorithm.clip", "0.17", 0.17, lambda w: w.loss().clip),
    Row("algorithm.value_clip", "0.23", 0.23, lambda w: w.facts("ppo_ptx", "critic.update")[0]["value_clip"]),
    Row("algorithm.importance_cap", "1.7", 1.7, lambda w: w.loss().importance_cap),
    Row("algorithm.kl.control", "adaptive", True, lambda w: len(set(w.metric("ppo/kl_coefficient"))) > 1),
    Row("algorithm.kl.coefficient", "0.07", 0.07, lambda w: w.shaping().kl_coefficient),
    Row("algorithm.kl.target", "5.5", 5.5, lambda w: w.controller().target),
    Row("algorithm.kl.horizon", "900", 900, lambda w: w.controller().horizon),
    Row("algorithm.ptx.coefficient", "0.61", 0.61, lambda w: w.loss().ptx_coefficient),
    Row("algorithm.ptx.documents_per_episode", "1.4", ("train", 0, 4), lambda w: w.run.source.documents[w.ptx_from]),
    Row("algorithm.ema_decay", "0.94", 0.94, lambda w: w.spec("ppo_ptx", "policy").ema_decay),
    Row("algorithm.evaluate_every", "2", [0, 2, 4], lambda w: [r.step for r in w.run.metrics() if r.name == "ppo/gold_mean"]),
    Row("algorithm.evaluation_prompts", "8", 8, lambda w: len(w.heldout()[0]["requests"])),
    Row("samples.per_iteration", "3", {1: 3, 2: 3, 3: 3, 4: 3}, lambda w: w.kept()),
    Row("algorithm.on_non_finite", "skip", True, lambda w: w.group().skip_non_finite),
    Row("rollout.temperature", "0.83", {0.83}, lambda w: w.temperatures()),
    Row("rollout.max_response_tokens", "14", 14, lambda w: w.generated()[0]["sampling"].max_tokens),
    Row("rollout.kv_cache_mib", "48", 48 << 20, lambda w: w.engine.kv_cache_bytes),
    Row("rollout.parity_prompts", "3", 3, lambda w: len(w.facts("ppo_ptx", "rollout.probe")[0]["prompts"])),
    Row("rollout.parity_tokens", "2", 2, lambda w: w.facts("ppo_ptx", "rollout.probe")[0]["max_tokens"]),
    Row("rollout.transport", "gloo", "gloo", lambda w: w.facts("ppo_ptx", "policy.publish_weights")[0]["transport"]),
    Row("trainer.micro_batch_tokens", "90", True, lambda w: w.widest() <= 90 < w.widest() * 2),
    Row("evaluate.prompts", "12", 12, lambda w: len(w.facts("evaluate", "rollout.generate")[0]["requests"])),
    Row("evaluate.web_documents", "6", 6, lambda w: len(w.facts("evaluate", "reference.row_losses")[0]["batches"][0])),
    Row("evaluate.cloze_tasks", "5", 5, lambda w: w.cloze_tasks()),
    Row("evaluate.samples_shown", "2", 2, lambda w: w.shown()),
    Row("run.checkpoint.keep_last", "5", 5, lambda w: w.pruned[0][0]),
    Row("run.checkpoint.keep_every", "3", 3, lambda w: w.pruned[0][1]),
]  # fmt: skip

SPECS = [
    Row("trainer.precision", "bf16", ("bfloat16", "bfloat16"), lambda w: (w.group().dtype, w.frozen().dtype)),
    Row("trainer.logits_mib", "99", (99 << 20, 99 << 20), lambda w: (w.trained.logits_bytes, w.frozen().logits_bytes)),
    Row("trainer.weight_bucket_mib", "33", 33 << 20, lambda w: w.group().weight_bucket_bytes),
    Row("rollout.precision", "bf16", "bfloat16", lambda w: w.engine.dtype),
    Row("rollout.inflight_updates", "true", True, lambda w: w.engine.interruptible),
    Row("algorithm.missing_eos_penalty", "2.75", 5.5, lambda w: w.penalty("model", 2.0)),
    Row("reward.function_missing_eos_penalty", "0.65", 0.65, lambda w: w.penalty("function", 2.0)),
    Row("run.role_start_seconds", "61.5", 61.5, lambda w: w.launch("policy").start_seconds),
    Row("run.call_seconds", "62.5", 62.5, lambda w: w.launch("reward").call_seconds),
    Row("run.supervision.restart_window_seconds", "64.5", 64.5, lambda w: w.fleet.watch.rules.window_seconds),
    Row("run.supervision.stall_seconds", "65.5", 65.5, lambda w: w.stall_seconds()),
    *(Row(f"run.checkpoint.stage_steps.{stage}", f"{n}", n, lambda w, stage=stage: w.config.run.checkpoint.steps(stage))
      for n, stage in enumerate(("pretrain", "sft", "reward_model", "ppo", "ppo_ptx", "online_dpo", "pretrain_large"), 11)),
    Row("run.checkpoint.keep_best", "ppo/gold_mean", "ppo/gold_mean", lambda w: w.scores.metric),
    Row("run.checkpoint.best_is", "lowest", True, lambda w: w.scores.lowest),
    Row("cluster.accelerator", "cuda", ("cuda", "cuda", "cuda"), lambda w: (w.engine.device, w.group().device, w.frozen().device)),
    Row("cluster.nodes", "3", 3, lambda w: len(w.layout.nodes)),
    Row("cluster.placement", "apart", 3, lambda w: len(w.layout.nodes)),
    Row("cluster.gpus_per_node", "2", True, lambda w: 0 < max(n.gpus for n in w.layout.nodes) <= 2),
    *role("rollout", 2, 1.2, 6),
    Row("cluster.roles.rollout.max_workers", "3", 3, lambda w: w.launch("rollout").most),
    *role("reward", 3, 0.44, 2),
    *role("reference", 4, 0.8, 3),
    *role("policy", 2, 1.6, 4),
    *role("critic", 3, 0.6, 5),
    *role("environment", 5, 0.68, 7),
    Row("evaluate.lm_eval.task_folder", "/tasks", "/tasks", lambda w: w.harness().task_folder),
    Row("data.pocket.seed", "5", 5, lambda w: w.source.world.seed),
    Row("data.pocket.arithmetic", "true", True, lambda w: w.source.world.arithmetic),
    Row("data.pocket.label_noise", "0.77", 0.77, lambda w: w.source.labeler.noise),
    Row("data.pocket.tie_width", "0.13", 0.13, lambda w: w.source.labeler.tie_width),
    Row("logger.wandb_project", "P", "P", lambda w: w.sinks()[0]._logger.wandb_project),
    Row("logger.wandb_mode", "online", "online", lambda w: w.sinks()[0]._logger.wandb_mode),
    Row("logger.wandb", "true", "wandb", lambda w: w.sinks()[0].name),
    Row("logger.tensorboard", "true", "TensorBoard", lambda w: w.sinks()[1].name),
]  # fmt: skip

FILES = [
    Row("data.source", "files", "files", lambda w: w.config.data.source.value),
    *(Row(f"data.files.{name}", f"F_{name}", f"F_{name}", lambda w, name=name: w.sets[name])
      for name in ("demonstrations", "rankings", "prompts", "evaluation_prompts", "pretraining")),
    Row("data.keep_columns", "[answer]", [("answer",), ("answer",)], lambda w: [s.keep for s in w.keeping]),
    Row("data.dedup_prefix_characters", "44", 44, lambda w: w.rendering.prefix_characters),
    Row("data.pii", "drop", (True, True), lambda w: (w.feeding.drop_pii, w.rendering.find_pii)),
    Row("data.order", "length_grouped", True, lambda w: w.feeding.length_grouped),
    Row("run.call_seconds", "67.5", 67.5, lambda w: w.feeding.call_seconds),
]  # fmt: skip

# Keys that exclude one of the others, or whose effect hides that of one.
OTHER = [
    Row("algorithm.ptx.rows_per_episode", "2.5", 8 * 40, lambda w: tokens_of(w.update("policy"))),
    Row("algorithm.whiten_advantages", "false", (0.0, 1.0), lambda w: (w.loss().advantage_mean, w.loss().advantage_std)),
    Row("algorithm.old_logprobs", "trainer", 3, lambda w: len(w.metric("ppo/mismatch_max"))),
    Row("algorithm.critic_init", "sft", "zero", lambda w: w.spec("ppo_ptx", "critic").head),
    Row("reward_model.max_rankings", "5", 8, lambda w: w.ranked()[0]),
    Row("reward_model.skip_rankings", "3", 3, lambda w: w.first_ranked()),
    Row("sft.pack_tokens", "50", True, lambda w: max(w.lengths("sft")) < 8),
    Row("sft.pretraining_full_rows", "true", True, lambda w: 40 in w.row_lengths("sft")),
    Row("run.checkpoint.every_steps", "23", 23, lambda w: w.config.run.checkpoint.steps("sft")),
    Row("model.freeze", "[embeddings]", ("embeddings",), lambda w: w.trained.freeze),
    Row("rollout.sleep", "true", ("cache", True), lambda w: (w.group().rest, w.engine.sleep)),
    Row("samples.all", "true", {1: 6, 2: 6, 3: 6}, lambda w: w.kept()),
    Row("evaluate.judge", "none", 0, lambda w: len(w.run.session.findings.preferred)),
]  # fmt: skip
AHEAD = [
    Row("algorithm.staleness", "1", [0, 1, 1], lambda w: [int(x) for x in w.metric("ppo/lag_max")]),
    Row("trainer.rest_on_host", "true", "state", lambda w: w.group().rest),
    Row("algorithm.policy_loss", "gspo", "gspo", lambda w: w.loss().policy_loss.name),
    Row("algorithm.aggregate", "sequences", "sequences", lambda w: w.loss().aggregate),
    Row("algorithm.clip_high", "0.31", 0.31, lambda w: w.loss().clip_high),
    Row("algorithm.dual_clip", "3.5", 3.5, lambda w: w.loss().dual_clip),
    Row("algorithm.importance_floor", "0.25", 0.25, lambda w: w.loss().importance_floor),
    Row("algorithm.importance_outside", "drop", "drop", lambda w: w.loss().importance_outside),
    Row("algorithm.kl.place", "loss", (0.0, 0.05), lambda w: (w.shaping().kl_coefficient, w.loss().kl_coefficient)),
    Row("algorithm.kl.estimator", "k2", "k2", lambda w: w.loss().kl_estimator),
]  # fmt: skip

_PPO = ("algorithm.iterations=3", "algorithm.prompts_per_iteration=6", "rollout.max_response_tokens=14",
        "algorithm.sequences_per_minibatch=3", "algorithm.policy_optimizer.warmup_steps=0",
        "algorithm.critic_optimizer.warmup_steps=0", "algorithm.evaluate_every=0")  # fmt: skip
SCENARIOS = {
    "main": Scenario(MAIN, ("pretrain", "pretrain_large", "sft", "reward_model", "ppo_ptx", "evaluate")),
    "specs": Scenario(SPECS),
    "files": Scenario(FILES, given=("sft.demonstrations_per_step=21",)),
    "other": Scenario(OTHER, ("sft", "reward_model", "ppo_ptx", "evaluate"), (
        *_PPO, "samples.per_iteration=2", "pretrain.row_tokens=40", "sft.steps=3", "sft.optimizer.warmup_steps=0",
        "sft.demonstrations_per_step=10", "sft.pretraining_fraction=0.2", "evaluate.prompts=4",
        "reward_model.prompts=12", "reward_model.heldout_prompts=8",
        "reward_model.optimizer.warmup_steps=0", "reward_model.prompts_per_step=4",
        "evaluate.web_documents=4", "evaluate.cloze_tasks=2")),
    "ahead": Scenario(AHEAD, ("ppo_ptx",), (*_PPO, "algorithm.importance_cap=2", "rollout.max_response_tokens=4")),
}  # fmt: skip
