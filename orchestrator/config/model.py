"""Settings of the models: where they come from, their size, LoRA and attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, fraction, path, positive
from workers.errors import ConfigError


class Attention(Enum):
    """Attention implementation (of transformers) in trainers and frozen models."""

    sdpa = "sdpa"  # PyTorch's own kernels
    eager = "eager"  # plain matrix products; every family has it
    flash_attention_2 = "flash_attention_2"  # GPU, extra package
    flash_attention_3 = "flash_attention_3"  # GPU, extra package
    flex_attention = "flex_attention"


@dataclass(slots=True, kw_only=True)
class PocketModelConfig:
    """Size of a from-scratch Llama-architecture model of the pocket world."""

    hidden_size: int = positive(128, 1_000_000)
    layers: int = positive(4, 10_000)
    heads: int = positive(4, 10_000)
    kv_heads: int = positive(4, 10_000)
    intermediate_size: int = positive(352, 1_000_000)
    max_position_embeddings: int = positive(128)
    tie_word_embeddings: bool = True

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

    # start of pretraining on files: freshly initialised weights, or a model to train further
    initial: str = path("")
    base: str = path("")
    sft: str = path("")
    reward_model: str = path("")
    ppo: str = path("")
    ppo_ptx: str = path("")
    large: str = path("")  # the larger base model that pocket_scale compares with
    critic: str = path("")  # initial weights of the critic; "" = algorithm.critic_init


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in SFT, reward model, policy and critic; never in pretraining."""

    rank: int = at_least(0, 0)  # 0 = off: all weights are trained
    alpha: float = positive(16.0)  # the update is alpha / rank * B A
    dropout: float = fraction(0.0)  # on adapter inputs; SFT and reward model only
    target: list[str] = field(default_factory=lambda: ["all-linear"])  # or names: [q_proj,v_proj]

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
    pocket: PocketModelConfig = field(default_factory=PocketModelConfig)
    large: PocketModelConfig = field(default_factory=PocketModelConfig)  # stage pretrain_large
    attention: Attention = Attention.sdpa
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    # Weights that stay fixed after pretraining: patterns of their names, or `embeddings`.
    freeze: list[str] = field(default_factory=list)

    def check(self, key: str) -> None:
        """Check that `freeze` is not combined with LoRA, which freezes all base weights."""
        if self.lora.rank and self.freeze:
            raise ConfigError(
                f"freeze={self.freeze} beside adapters, which freeze every weight already",
                where=f"{key}.freeze",
                fix="set model.lora.rank=0 or model.freeze=[]",
            )
