"""Names of settings in other frameworks, and the keys that set them here.

They are not accepted as synonyms: it would have to be guessed which of several optimizers a bare
`lr` means, or whether a batch counts prompts or sequences.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alias:
    """What a foreign name is called here.

    Attributes:
        keys: Keys that set it; () where nothing does.
        unit: What their numbers count, or what else to write.
        differs: What is not the same, or why there is no such key.
    """

    keys: tuple[str, ...] = ()
    unit: str = ""
    differs: str = ""

    def words(self, section: str = "") -> str:
        """Advice; of several keys those below `section`, if it has any."""
        below = tuple(key for key in self.keys if section and key.startswith(f"{section}."))
        keys = below or self.keys
        named = f"set {' or '.join(keys)}" if keys else ""
        unit = f" ({self.unit})" if self.unit and keys else ""
        parts = [f"{named}{unit}" if named else "", self.differs]
        return "; ".join(part for part in parts if part)


_LR = Alias(
    (
        "pretrain.optimizer.learning_rate", "sft.optimizer.learning_rate",
        "reward_model.optimizer.learning_rate", "algorithm.policy_optimizer.learning_rate",
        "algorithm.critic_optimizer.learning_rate",
    ),
    "the peak of the schedule; each stage has its own",
)  # fmt: skip
_BATCH = Alias(
    (
        "algorithm.prompts_per_iteration", "sft.demonstrations_per_step",
        "reward_model.prompts_per_step", "pretrain.documents_per_step",
    ),
    "prompts, demonstrations, prompts, documents; all workers together",
)  # fmt: skip
_MINI_BATCH = Alias(
    ("algorithm.sequences_per_minibatch",), "sequences of one optimizer step, all workers together"
)
_MICRO_BATCH = Alias(
    ("trainer.micro_batch_tokens",),
    "tokens of one forward and backward pass, not rows",
    "it determines the number of passes per step",
)
_EPOCHS = Alias(
    ("sft.epochs", "reward_model.epochs", "algorithm.epochs"),
    "passes over demonstrations, over rankings, over the batch of an iteration",
)
_STEPS = Alias(
    ("pretrain.steps", "sft.steps", "algorithm.iterations"), "optimizer steps; of PPO iterations"
)
_RESPONSE = Alias(("rollout.max_response_tokens",), "tokens of one response")
_LENGTH = Alias(
    ("rollout.max_prompt_tokens", "rollout.max_response_tokens"),
    "tokens; their sum is the longest sequence",
)
_PROMPT = Alias(("rollout.max_prompt_tokens", "data.files.max_prompt_tokens"), "tokens")
_KL = Alias(("algorithm.kl.coefficient",), "reward units per nat")
_KL_TARGET = Alias(
    ("algorithm.kl.target",), "nats per sequence; needs algorithm.kl.control=adaptive"
)
_DIR = Alias(("run.dir",), "the run folder itself")
_WARMUP = Alias(
    tuple(key.replace("learning_rate", "warmup_steps") for key in _LR.keys),
    "optimizer steps, not a share of them",
)
_GPUS = Alias(
    ("cluster.gpus_per_node", "cluster.nodes"),
    "GPUs of a node, nodes",
    "cluster=one_gpu and cluster=node_8gpu set the rest; cluster.roles.ROLE.workers says who works",
)
_MODEL = Alias(
    ("model.checkpoints.base", "model.checkpoints.sft"),
    "Hugging Face folder; base is fine-tuned first, sft is where PPO starts",
)
_REWARD_MODEL = Alias(("model.checkpoints.reward_model",), "Hugging Face folder")
_DATA = Alias(
    (
        "data.files.prompts", "data.files.demonstrations", "data.files.rankings",
        "data.files.pretraining",
    ),
    "file or folder; add data=files",
    "data.sets.NAME mixes several",
)  # fmt: skip
_BF16 = Alias(("trainer.precision", "rollout.precision"), "bf16 or fp32")
_SAMPLING = Alias(
    differs="PPO samples from the whole distribution at rollout.temperature: cutting it would make "
    "the log-probabilities of training those of another policy"
)
_BETAS = Alias(tuple(key.replace("learning_rate", "beta1") for key in _LR.keys))
_SAVE = Alias(("run.checkpoint.every_steps",), "optimizer steps; of PPO iterations")
_WANDB = Alias(("logger.wandb_project",), "add logger=wandb")
_TEMPERATURE = Alias(
    ("rollout.temperature", "reward_model.temperature"),
    "of PPO's samples; of the completions to rank",
)
_LORA = Alias(("model.lora.rank", "model.lora.alpha", "model.lora.target"), "0 = off")
_SAMPLES = Alias(("algorithm.samples_per_prompt",), "responses to each prompt")
_GRADIENT = Alias(tuple(key.replace("learning_rate", "max_grad_norm") for key in _LR.keys))
_LOGGERS = Alias(("logger.wandb", "logger.tensorboard"), "true or false; or logger=wandb")

ALIASES: dict[str, Alias] = {
    **dict.fromkeys(
        ("lr", "learning_rate", "actor_learning_rate", "critic_learning_rate", "policy_lr"), _LR
    ),
    "actor_lr": Alias(("algorithm.policy_optimizer.learning_rate",)),
    "critic_lr": Alias(("algorithm.critic_optimizer.learning_rate",)),
    "min_lr": Alias(
        tuple(key.replace("learning_rate", "min_learning_rate_ratio") for key in _LR.keys),
        "a share of the peak",
    ),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "lr_schedule"), Alias(
        tuple(key.replace("learning_rate", "schedule") for key in _LR.keys),
        "constant, linear or cosine",
    )),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_ratio", "num_warmup_steps"), _WARMUP),
    **dict.fromkeys(("adam_beta1", "betas", "adam_beta2"), _BETAS),
    "adam_epsilon": Alias(tuple(key.replace("learning_rate", "eps") for key in _LR.keys)),
    "weight_decay": Alias(tuple(key.replace("learning_rate", "weight_decay") for key in _LR.keys)),
    **dict.fromkeys(("max_norm", "grad_clip", "gradient_clipping", "max_grad_norm"), _GRADIENT),
    **dict.fromkeys(("batch_size", "train_batch_size", "rollout_batch_size", "global_batch_size"),
                    _BATCH),
    **dict.fromkeys(("mini_batch_size", "minibatch_size", "ppo_mini_batch_size",
                     "num_mini_batches"), _MINI_BATCH),
    **dict.fromkeys(("micro_batch_size", "per_device_train_batch_size", "micro_train_batch_size",
                     "per_device_batch_size", "ppo_micro_batch_size", "gradient_accumulation_steps",
                     "grad_accum", "micro_rollout_batch_size"), _MICRO_BATCH),
    "per_device_eval_batch_size": Alias(("reward.micro_batch_tokens",), "tokens of one pass"),
    **dict.fromkeys(("max_new_tokens", "response_length", "max_response_length", "max_tokens",
                     "generate_max_len", "max_completion_length"), _RESPONSE),
    **dict.fromkeys(("max_length", "max_seq_len", "max_seq_length", "max_len", "max_model_len",
                     "seq_length", "block_size", "context_length"), _LENGTH),
    **dict.fromkeys(("max_prompt_length", "prompt_max_len", "prompt_length"), _PROMPT),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs",
                     "total_epochs"), _EPOCHS),
    **dict.fromkeys(("ppo_epochs", "num_ppo_epochs"), Alias(
        ("algorithm.epochs",), "passes over the batch of an iteration")),
    **dict.fromkeys(("steps", "max_steps", "total_steps", "num_steps", "train_steps", "num_iters"),
                    _STEPS),
    **dict.fromkeys(("total_episodes", "num_episodes"), Alias(
        ("algorithm.iterations",), "iterations of prompts_per_iteration x samples_per_prompt")),
    **dict.fromkeys(("kl_coef", "init_kl_coef", "kl_coeff", "kl_ctl", "beta", "kl_beta",
                     "kl_loss_coef", "kl_coefficient"), _KL),
    "kl_penalty": Alias(_KL.keys, _KL.unit, "the penalty is the log ratio of each sampled token"),
    **dict.fromkeys(("kl_target", "target_kl"), _KL_TARGET),
    "kl_horizon": Alias(("algorithm.kl.horizon",), "sequences"),
    "adap_kl_ctrl": Alias(("algorithm.kl.control",), "adaptive or fixed"),
    **dict.fromkeys(("output_dir", "save_path", "output_path", "save_dir", "out_dir", "log_dir",
                     "logging_dir", "default_local_dir"), _DIR),
    **dict.fromkeys(("rollouts_kept", "log_completions", "num_completions_to_print"), Alias(
        ("samples.per_iteration", "samples.all"), "texts per iteration")),
    "overwrite_output_dir": Alias(("run.overwrite",), "true or false"),
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "do_sample", "num_beams"),
                    _SAMPLING),
    "temperature": _TEMPERATURE,
    "gamma": Alias(("algorithm.gamma",)),
    "discount": Alias(("algorithm.gamma",)),
    **dict.fromkeys(("lam", "lambd", "gae_lambda", "lambda_gae"), Alias(("algorithm.lam",))),
    **dict.fromkeys(("adv_estimator", "advantage_estimator"), Alias(("algorithm.advantage",))),
    **dict.fromkeys(("cliprange", "clip_range", "eps_clip", "clip_ratio", "clip_eps", "epsilon"),
                    Alias(("algorithm.clip",))),
    **dict.fromkeys(("cliprange_value", "value_clip_range", "vf_clip", "clip_range_vf"),
                    Alias(("algorithm.value_clip",))),
    **dict.fromkeys(("vf_coef", "value_loss_coef", "vf_coeff"), Alias(
        ("algorithm.critic_optimizer.learning_rate",), "",
        "the critic is a separate model, so its loss needs no weight against the policy's")),
    **dict.fromkeys(("entropy_coef", "ent_coef", "entropy_coeff"), Alias(
        differs="there is no entropy bonus; algorithm.kl.coefficient holds the policy near the "
        "SFT model")),
    "ptx_coef": Alias(("algorithm.ptx.coefficient",), "of the stage ppo_ptx"),
    **dict.fromkeys(("whiten_rewards", "normalize_reward"), Alias(
        differs="rewards are not whitened; algorithm.whiten_advantages whitens advantages")),
    "non_eos_penalty": Alias(("algorithm.missing_eos_penalty",)),
    **dict.fromkeys(("n_samples_per_prompt", "num_generations", "num_samples", "n_rollouts",
                     "num_return_sequences"), _SAMPLES),
    **dict.fromkeys(("num_gpus", "n_gpus", "gpus", "n_gpus_per_node", "nproc_per_node",
                     "world_size", "num_processes"), _GPUS),
    **dict.fromkeys(("nnodes", "num_nodes"), Alias(("cluster.nodes",))),
    **dict.fromkeys(("tensor_model_parallel_size", "tp_size", "tp", "tensor_parallel"), Alias(
        ("rollout.tensor_parallel_size",), "GPUs of one engine")),
    "gpu_memory_utilization": Alias(("rollout.gpu_memory_fraction",), "share of a GPU, 0 to 1"),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_path", "pretrain_path",
                     "actor_model", "policy_model", "base_model"), _MODEL),
    **dict.fromkeys(("sft_model_path", "ref_model", "reference_model", "ref_model_path"), Alias(
        ("model.checkpoints.sft",), "Hugging Face folder; it is the reference too")),
    **dict.fromkeys(("reward_model_path", "reward_pretrain", "rm_path",
                     "reward_model_name_or_path"),
                    _REWARD_MODEL),
    **dict.fromkeys(("value_model", "critic_model", "critic_pretrain"), Alias(
        ("model.checkpoints.critic",), "Hugging Face folder")),
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "train_files", "data_path",
                     "dataset_path", "prompt_data"), _DATA),
    "eval_dataset": Alias(("data.files.evaluation_prompts",), "file or folder"),
    **dict.fromkeys(("tokenizer", "tokenizer_name", "tokenizer_path"), Alias(
        differs="each model has its own tokenizer, in the folder of its checkpoint")),
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision", "precision"),
                    _BF16),
    "gradient_checkpointing": Alias(("model.gradient_checkpointing",), "true or false"),
    **dict.fromkeys(("attn_implementation", "flash_attn", "use_flash_attention_2"), Alias(
        ("model.attention",), "sdpa, eager, flash_attention_2, ...")),
    **dict.fromkeys(("lora", "lora_r", "lora_rank", "lora_alpha", "use_peft", "use_lora"), _LORA),
    **dict.fromkeys(("zero", "zero_stage", "deepspeed", "ds_config"), Alias(
        ("trainer.zero_stage",), "1, 2 or 3; trainer=zero3_bf16 sets more")),
    **dict.fromkeys(("save_steps", "save_freq", "save_every", "checkpoint_every"), _SAVE),
    "save_total_limit": Alias(("run.checkpoint.keep_last",), "checkpoints"),
    **dict.fromkeys(("eval_steps", "eval_every", "test_freq", "evaluation_strategy"), Alias(
        ("algorithm.evaluate_every",), "iterations")),
    **dict.fromkeys(("resume_from_checkpoint", "load_checkpoint", "checkpoint"), Alias(
        ("resume",), "a run folder")),
    **dict.fromkeys(("wandb_project", "project", "project_name"), _WANDB),
    **dict.fromkeys(("report_to", "log_with", "use_wandb", "wandb", "tensorboard"), _LOGGERS),
    **dict.fromkeys(("run_name", "experiment_name", "exp_name"), Alias(
        ("run.dir",), "a run is named by its folder")),
    "random_seed": Alias(("seed",)),
    "num_workers": Alias(("data.workers", "cluster.roles.policy.workers"),
                         "processes that read data; trainers"),
    "reward_fn": Alias(("reward.function",), "package.module:callable; add reward=function"),
    "reward_function": Alias(("reward.function",), "package.module:callable; add reward=function"),
    "chat_template": Alias(("data.chat_template",), "a Jinja file"),
    **dict.fromkeys(("debug", "dry_run", "plan"), Alias(("run.plan_only",), "true or false")),
    **dict.fromkeys(("device", "use_gpu", "cuda", "cpu", "no_cuda"), Alias(
        ("cluster.accelerator",), "cpu or cuda; cluster=one_gpu sets the rest")),
}  # fmt: skip


def alias_words(key: str) -> str | None:
    """What to write instead of a foreign name, alone or in a section of ours; None = unknown."""
    section, _, last = key.rpartition(".")
    alias = ALIASES.get(last.lower())
    return alias.words(section) if alias else None
