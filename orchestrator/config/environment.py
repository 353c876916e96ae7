"""Settings of the environment, which answers the policy between its turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, needed, positive, seconds, words
from workers.errors import ConfigError


class EnvironmentKind(Enum):
    """What answers the policy."""

    none = "none"
    """Nothing: every response is one turn."""
    function = "function"
    """An environment of your own."""
    tools = "tools"
    """Tools that the policy may call before it answers."""


class ToolCalls(Enum):
    """How a turn calls a tool."""

    json = "json"
    """<tool_call>{"name": "NAME", "arguments": {...}}</tool_call>, as Hermes and Qwen do."""
    words = "words"
    """The name of a tool as first word; the rest of the turn is its argument."""


@dataclass(slots=True, kw_only=True)
class EnvironmentConfig:
    """What the policy talks with in PPO and in the evaluation."""

    kind: EnvironmentKind = EnvironmentKind.none
    """What answers the policy between its turns."""
    factory: str = ""
    """Of kind function: package.module:make, (row, seed) -> an object with step(text) -> Turn."""
    tools: list[str] = field(default_factory=list)
    """Of kind tools: names of ours (calculator, lookup), or package.module:function."""
    call: ToolCalls = ToolCalls.json
    """How a turn calls a tool."""
    max_turns: int = positive(4, 1000)
    """Turns of the policy in a sequence at most."""
    turn_tokens: int = at_least(0, 0)
    """Tokens of a turn at most; 0 = as many as rollout.max_response_tokens, which is for all turns
    and observations together, leaves."""
    step_seconds: float = seconds(30.0)
    """Deadline of a step of the environment, and of making one; the sequence of a late one is
    dropped."""
    role: str = needed("user")
    """Who says an observation, in the dialogue that the chat template renders."""
    turn_text: str = words("")
    """Text after a turn of the policy, with {observation} in it, in place of what the chat template
    writes; "" = the template."""

    @property
    def on(self) -> bool:
        """Whether there is an environment."""
        return self.kind is not EnvironmentKind.none

    def check(self, key: str) -> None:
        """Check that the kind has what it needs, and nothing of another kind."""
        function, tools = (
            self.kind is each for each in (EnvironmentKind.function, EnvironmentKind.tools)
        )
        if function and not self.factory:
            raise ConfigError(
                "no environment is named",
                where=f"{key}.factory",
                fix="set it to package.module:make",
            )
        if tools and not self.tools:
            raise ConfigError(
                "no tool is named", where=f"{key}.tools", fix=f"set {key}.tools=[calculator]"
            )
        if self.factory and not function:
            raise ConfigError(
                f"kind={self.kind.value} has no factory",
                where=f"{key}.factory",
                fix=f"set {key}.kind=function, or leave it empty",
            )
        if self.tools and not tools:
            raise ConfigError(
                f"kind={self.kind.value} has no tools",
                where=f"{key}.tools",
                fix=f"set {key}.kind=tools, or leave it empty",
            )
