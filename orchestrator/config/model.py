"""Settings of the models: where they come from, their size, LoRA and attention."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum

from orchestrator.config.ranges import at_least, fraction, path, positive
from workers.errors import ConfigError


class Attention(Enum):
    """Attention implementation (of transformers) in trainers and frozen models."""

    sdpa = "sdpa"
    """PyTorch's own kernels."""
    eager = "eager"
    """Plain matrix products; every family has it."""
    flash_attention_2 = "flash_attention_2"
    """GPU, extra package."""
    flash_attention_3 = "flash_attention_3"
    """GPU, extra package."""
    flex_attention = "flex_attention"


@dataclass(slots=True, kw_only=True)
class PocketModelConfig:
    """Size of a from-scratch Llama-architecture model of the pocket world."""

    hidden_size: int = positive(128, 1_000_000)
    """Width of the residual stream."""
    layers: int = positive(4, 10_000)
    """Transformer blocks."""
    heads: int = positive(4, 10_000)
    """Query heads per block."""
    kv_heads: int = positive(4, 10_000)
    """Key and value heads per block; divides `heads`."""
    intermediate_size: int = positive(352, 1_000_000)
    """Width of the feed-forward layers."""
    max_position_embeddings: int = positive(128)
    """Longest sequence."""
    tie_word_embeddings: bool = True
    """Input and output embeddings share their weights."""

    def check(self, key: str) -> None:
        """Check that heads divide hidden_size, and kv_heads divide heads."""
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size}, heads={self.heads}, kv_heads={self.kv_heads}",
                where=key,
                fix="hidden_size must be a multiple of heads, and heads of kv_heads",
            )


@dataclass(slots=True, kw_only=True)
class CheckpointPaths:
    """Hugging Face model folders; "" = a stage of this run trains the model."""

    initial: str = path("")
    """Start of pretraining on files: freshly initialised weights, or a model to train further."""
    base: str = path("")
    """The pretrained model: start of SFT."""
    sft: str = path("")
    """The SFT model: start of reward model and policy, and the reference."""
    reward_model: str = path("")
    """The reward model that PPO optimises."""
    ppo: str = path("")
    """A model trained by PPO, to evaluate."""
    ppo_ptx: str = path("")
    """A model trained by PPO-ptx, to evaluate."""
    rejection_sampling: str = path("")
    """Result of rejection sampling, for the evaluation."""
    dpo: str = path("")
    """A model trained by DPO, to evaluate."""
    online_dpo: str = path("")
    """A model trained by online DPO, to evaluate."""
    large: str = path("")
    """The larger base model that pocket_scale compares with."""
    teacher: str = path("")
    """The model whose log-probabilities a student learns (algorithm.advantage=distill); it has the
    student's tokenizer, at any size. Also evaluated."""
    gold: str = path("")
    """The reward model that gives the gold score (overoptimization.gold=reward_model)."""
    critic: str = path("")
    """Initial weights of the critic; "" = algorithm.critic_init."""

    def given(self) -> dict[str, str]:
        """The folders that are named, by field."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: folder for name, folder in named.items() if folder}


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in SFT, reward model, policy and critic; never in pretraining."""

    rank: int = at_least(0, 0)
    """Rank of the adapters; 0 = off: all weights are trained."""
    alpha: float = positive(16.0)
    """Scale of the adapters: the update is alpha / rank * B A."""
    dropout: float = fraction(0.0)
    """Dropout on adapter inputs; SFT and reward model only."""
    target: list[str] = field(default_factory=lambda: ["all-linear"])
    """Linear layers that get adapters: [all-linear], or names: [q_proj,v_proj]."""

    def check(self, key: str) -> None:
        """Check that at least one layer gets an adapter."""
        if not self.target:
            raise ConfigError(
                "no layer gets an adapter", where=f"{key}.target", fix="use [all-linear]"
            )


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The models: given checkpoints, or pocket models trained from scratch."""

    checkpoints: CheckpointPaths = field(default_factory=CheckpointPaths)
    """Folders of given models; a stage that the run contains needs none."""
    pocket: PocketModelConfig = field(default_factory=PocketModelConfig)
    """Shape of the model that is pretrained from scratch."""
    large: PocketModelConfig = field(default_factory=PocketModelConfig)
    """Shape of the model of stage pretrain_large."""
    attention: Attention = Attention.sdpa
    """Attention kernels of trainers, reference and reward model."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower steps."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters instead of training all weights."""
    freeze: list[str] = field(default_factory=list)
    """Weights that stay fixed after pretraining: patterns of their names, or `embeddings`."""

    def check(self, key: str) -> None:
        """Check that `freeze` is not combined with LoRA, which freezes all base weights."""
        if self.lora.rank and self.freeze:
            raise ConfigError(
                f"freeze={self.freeze} with adapters, which freeze every weight already",
                where=f"{key}.freeze",
                fix="set model.lora.rank=0 or model.freeze=[]",
            )
