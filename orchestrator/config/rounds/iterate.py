"""Settings of rounds: labels, reward model and policy, again on answers of what they made."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, positive
from orchestrator.config.rounds.labels import check_shares
from workers.errors import ConfigError

MOST_ROUNDS = 99
POLICY = "policy"  # in `models`: the policy of the round before


class Rankings(Enum):
    """The rankings that the reward model of a round trains on."""

    all = "all"
    """Those of all rounds so far."""
    newest = "newest"
    """Those of its own round."""


class From(Enum):
    """The weights from which a round trains a model."""

    sft = "sft"
    """The SFT model, as in the first round."""
    previous = "previous"
    """The model that the round before made."""


@dataclass(slots=True, kw_only=True)
class IterateConfig:
    """Rounds of the same stages. Round r of stage NAME is the variant NAME_r."""

    rounds: int = positive(1, MOST_ROUNDS)
    """How often `stages` are run; 1 = once, as `stages` of the run says."""
    stages: list[str] = field(default_factory=lambda: ["label", "reward_model", "ppo"])
    """What is repeated: names that follow each other in `stages` of the run, the first of them
    label, the last one makes the policy."""
    prompts: int = at_least(0, 0)
    """Prompts to train on per later round; 0 = label.prompts."""
    models: list[str] = field(default_factory=lambda: [POLICY, "sft"])
    """Who answers in later rounds: policy (of the round before), or names as in label.models."""
    shares: list[float] = field(default_factory=lambda: [3.0, 1.0])
    """Share of the answers from each of them, in any unit; [] = equal."""
    rankings: Rankings = Rankings.all
    """The rankings that a later reward model trains on."""
    reward_model: From = From.sft
    """The weights from which a later reward model is trained."""
    policy: From = From.sft
    """The weights from which a later policy is trained; the reference stays the SFT model."""

    def check(self, key: str) -> None:
        """Check who answers, and that something is repeated."""
        if not self.stages:
            raise ConfigError(
                "no stage is repeated", where=f"{key}.stages", fix="[label,reward_model,ppo]"
            )
        if not self.models:
            raise ConfigError("nobody answers", where=f"{key}.models", fix="[policy,sft]")
        check_shares(self.shares, self.models, f"{key}.shares")
