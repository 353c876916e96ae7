"""Settings of the rewards: which source gives them, and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.config.by_name import plain
from orchestrator.config.ranges import at_least, check_tree, needed, positive, seconds
from workers.errors import ConfigError, RehearsalError
from workers.extensions.settings import filled
from workers.process.user_code import describe
from workers.scorers.source import Needs, RewardSource, find_source, key_of


class TextBridge(Enum):
    """How the policy's tokens are passed to the reward model."""

    tokens = "tokens"
    """Unchanged token ids; both models must share a tokenizer."""
    text = "text"
    """Decode with the policy's tokenizer, encode with the reward model's."""


@dataclass(slots=True, kw_only=True)
class RewardConfig:
    """The rewards of PPO: a reward model, a function, or another source."""

    kind: str = needed("model")
    """Source of the rewards: model | function | package.module:NAME of your own."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the source that only the source itself declares."""
    function: str = ""
    """The function as package.module:callable, (prompts, responses) -> list[float]."""
    function_seconds: float = seconds(300.0, or_none=True)
    """Timeout per call of the function; 0 = none."""
    function_retries: int = at_least(0, 1)
    """Retries for sequences whose call raised, timed out, or returned no number."""
    function_missing_eos_penalty: float = at_least(0, 0.0)
    """Subtracted from the reward of a truncated response, in units of the reward, unless a reward
    model gives it."""
    bridge: TextBridge = TextBridge.tokens
    """Input of the reward model."""
    micro_batch_tokens: int = positive(8192)
    """Maximum tokens per forward pass of the reward and reference models."""

    @property
    def folder(self) -> str:
        """First folder of the search for modules of the user."""
        return str(Path.cwd())

    @property
    def needs(self) -> Needs:
        """What the source needs from the run.

        Raises:
            ConfigError: there is no such source, or its settings are wrong.
        """
        source = find_source(self.kind, self.folder)
        values = self.values(source, self.settings)
        try:
            record = filled(source.settings, values, self._key)
            check_tree(record, "reward.settings")
            needs = source.needs(record)
        except RehearsalError:
            raise
        except (Exception, SystemExit) as error:  # a user's source may raise anything
            raise ConfigError(
                f"the reward source {self.kind} refused its settings with {describe(error)}",
                where="reward.settings",
                fix="correct reward.settings, or the source",
            ) from error
        if not isinstance(needs, Needs):
            raise ConfigError(
                f"`needs` of the reward source {self.kind} returned {type(needs).__name__}",
                where="reward.kind",
                fix="let it return an object of workers.scorers.source.Needs",
            )
        return needs

    def values(self, source: RewardSource[Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Value of each setting of a source: the keys above by their names, and those in `own`.

        Raises:
            ConfigError: a key is in both.
        """
        wanted = {each.name for each in fields(source.settings)} & _SHARED
        if both := sorted(wanted & own.keys()):
            raise ConfigError(
                f"{key_of(both[0])} is a key of its own",
                where=key_of(both[0]),
                fix=f"set {self._key(both[0])} instead",
            )
        held = {name: getattr(self, name) for name in wanted}
        return {**own, **{name: plain(value) for name, value in held.items()}}

    def _key(self, name: str) -> str:
        return f"reward.{name}" if name in _SHARED else key_of(name)


_SHARED = {each.name for each in fields(RewardConfig)} - {"kind", "settings"}
