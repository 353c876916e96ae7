"""Settings of the rewards: which source gives them, and its keys."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.config.ranges import at_least, needed, positive, seconds, words
from orchestrator.config.reward_terms import SECTION, RewardTerm, joined_needs, parse_terms
from workers.errors import ConfigError
from workers.scorers.source import Needs


class TextBridge(Enum):
    """How the policy's tokens are passed to the reward model."""

    tokens = "tokens"
    """Unchanged token ids; both models must share a tokenizer."""
    text = "text"
    """Decode with the policy's tokenizer, encode with the reward model's."""


class Combine(Enum):
    """How the terms of a reward become one number per sequence."""

    sum = "sum"
    """The sum of weight times value."""
    normalised = "normalised"
    """The same after each term got mean 0 and deviation 1 within the sequences scored together
    (an iteration of PPO): terms of any scale act by their weights alone."""


@dataclass(slots=True, kw_only=True)
class RewardConfig:
    """The rewards of PPO: a reward model, a function, or another source."""

    kind: str = needed("model")
    """Source of the rewards: model | function | package.module:NAME of your own."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the source that only the source itself declares."""
    terms: dict[str, Any] = field(default_factory=dict)
    """Name -> kind, weight and settings of one term of a reward that has several; replaces kind."""
    combine: Combine = Combine.sum
    """How the terms become one number."""
    function: str = ""
    """The function as package.module:callable, (prompts, responses) -> list[float]."""
    function_seconds: float = seconds(300.0, or_none=True)
    """Timeout per call of the function; 0 = none."""
    function_retries: int = at_least(0, 1)
    """Retries for sequences whose call raised, timed out, or returned no number."""
    function_missing_eos_penalty: float = at_least(0, 0.0)
    """Subtracted from the reward of a truncated response, in units of the reward, unless a reward
    model gives it."""
    step_separator: str = words("")
    """Text between the steps of a response, for rewards that are lists of numbers, one per step; ""
    = a number per response."""
    bridge: TextBridge = TextBridge.tokens
    """Input of the reward model."""
    micro_batch_tokens: int = positive(8192)
    """Maximum tokens per forward pass of the reward and reference models."""

    def check(self, key: str) -> None:
        """Check the names, kinds and weights of the terms."""
        if self.combine is not Combine.sum and not self.terms:
            raise ConfigError(
                f"combine={self.combine.value} is for a reward of several terms",
                where=f"{key}.combine",
                fix=f"set {SECTION}.NAME.kind, or leave it",
            )
        if self.step_separator and self.combine is Combine.normalised:
            raise ConfigError(
                "rewards of steps cannot be whitened by response",
                where=f"{key}.step_separator",
                fix=f"leave it empty, or set {key}.combine=sum",
            )
        if self.step_separator and not self.needs.text:
            raise ConfigError(
                f"{self.label} gives a number per response alone",
                where=f"{key}.step_separator",
                fix="leave it empty, or choose a source that reads text",
            )

    @property
    def folder(self) -> str:
        """First folder of the search for modules of the user."""
        return str(Path.cwd())

    @property
    def each(self) -> tuple[RewardTerm, ...]:
        """Its terms; one without a name in a run that sets none.

        Raises:
            ConfigError: a term is wrong, or has settings that no term reads.
        """
        shared = {name: getattr(self, name) for name in _SHARED}
        if not self.terms:
            return (RewardTerm("", self.kind, 1.0, self.settings, shared, self.folder),)
        if self.settings:
            raise ConfigError(
                "settings of a single reward beside terms, which do not read them",
                where="reward.settings",
                fix=f"set them in the term: {SECTION}.NAME.{next(iter(self.settings))}",
            )
        return parse_terms(self.terms, shared, self.folder)

    @property
    def needs(self) -> Needs:
        """What the sources need from the run.

        Raises:
            ConfigError: there is no such source, or its settings are wrong.
        """
        return joined_needs([term.needs() for term in self.each])

    @property
    def label(self) -> str:
        """What the reward is, in a word or a few."""
        return "+".join(term.name or term.kind for term in self.each)


_SHARED = {each.name for each in fields(RewardConfig)} - {
    "kind", "settings", "terms", "combine", "step_separator",
}  # fmt: skip
