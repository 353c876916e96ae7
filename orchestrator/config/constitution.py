"""Settings of the stage constitution: answers that are criticised and revised by principles."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.chat_model import ChatModelConfig
from orchestrator.config.ranges import at_least, between, needed, path, positive


class Critic(Enum):
    """Who criticises and revises the answers."""

    policy = "policy"
    """The model that answered."""
    checkpoint = "checkpoint"
    """Another model in the run's engines."""
    endpoint = "endpoint"
    """A chat model behind a URL."""
    function = "function"
    """A function of yours, which only revises."""


class Keep(Enum):
    """The revisions of an answer that become demonstrations."""

    last = "last"
    """The last one."""
    all = "all"
    """That of every round."""


@dataclass(slots=True, kw_only=True)
class ConstitutionConfig:
    """Answers, critiques and revisions, which later SFT runs train on."""

    model: str = needed("sft")
    """Model that answers: a name of model.checkpoints, or of what earlier stages make."""
    principles: str = path("harmless", needed=True)
    """Name of a file in conf/constitution, or path of a YAML file with principles."""
    critic: Critic = Critic.policy
    """Who criticises and revises."""
    checkpoint: str = path("")
    """Folder of the model that does (critic: checkpoint)."""
    function: str = ""
    """The function as package.module:callable, (prompts, responses) -> a list of revised texts,
    None where there is none (critic: function)."""
    endpoint: ChatModelConfig = field(default_factory=ChatModelConfig)
    """The chat model that does (critic: endpoint)."""
    prompts: int = positive(1024)
    """Prompts whose revised answers train; of a smaller data set each once."""
    heldout_prompts: int = at_least(1, 128)
    """Further prompts, whose revised answers measure the SFT model and do not train it."""
    revisions: int = between(1, 2, 8)
    """Rounds of critique and revision; each draws a principle per answer."""
    keep: Keep = Keep.last
    """The revisions that become demonstrations."""
    temperature: float = positive(1.0)
    """Sampling temperature of the answers."""
    critic_temperature: float = positive(1.0)
    """Sampling temperature of critiques and revisions by models in the run's engines."""
    critique_tokens: int = positive(256, 100_000)
    """Most tokens of a critique or revision by models in the run's engines."""
    question_tokens: int = positive(2048, 1_000_000)
    """Longest question that the engines are set up for, as far as the model's positions go; answers
    with a longer one are left out."""
