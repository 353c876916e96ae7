"""A user's reward function: its arguments and return value.

It is called with lists, one item per response, and returns one number per response, in order. The
names of its parameters determine which lists it gets:

- `prompts`: texts without control tokens (see `workers.data.rows.asked.plain_text`);
- `responses`: texts without control tokens;
- `messages`: dialogues up to the response, each a list of `{"role": ..., "content": ...}`;
- `rendered`: prompts as the policy's tokenizer gets them, control tokens included;
- `finished`: whether the response ended by itself (True) or was cut;
- `rows`: a dictionary of the kept columns of each prompt's row (data.keep_columns);
- `turns`: what follows the prompt, each a list of `{"role": ..., "content": ...}`: the turns of the
  policy ("assistant") and what its environment said ("environment"). Without an environment, the
  response alone.

Of a conversation, `responses` has the last turn of the policy: its answer.

A function with other parameter names gets prompts and responses, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.data.rows.asked import Asked, as_messages, plain_text
from workers.process.user_code import load_function
from workers.user_functions.answers import Answering
from workers.user_functions.calls import Caller
from workers.user_functions.child_process import UserProcess
from workers.user_functions.signature import REWARD, Arguments, bind

WHERE = "reward.function"
_NAME = "reward function"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One response and its prompt."""

    asked: Asked
    response: str  # of a conversation: the last turn of the policy
    finished: bool
    turns: tuple[tuple[str, str], ...] = ()  # role and text; () = the response is the only one

    @property
    def whole(self) -> str:
        """All that follows the prompt, one line per turn of a conversation."""
        return "\n".join(text for _, text in self.turns) if self.turns else self.response

    @property
    def dialogue(self) -> list[dict[str, str]]:
        """What follows the prompt, one item per turn."""
        turns = self.turns or (("assistant", self.response),)
        return [{"role": role, "content": text} for role, text in turns]


def load_reward(path: str, folder: str = "") -> Caller:
    """The function at an import path, called in this process; rewards must be finite in float32.

    Raises:
        ConfigError: It cannot be imported, or is not callable as a reward function.
    """
    function = bind(load_function(path, WHERE, folder), REWARD, WHERE)
    return Caller(_NAME, _arguments, Answering(_NAME, function))


def load_process_reward(path: str, folder: str = "") -> Caller:
    """As `load_reward`; a response's reward may be a list of numbers, one per step."""
    function = bind(load_function(path, WHERE, folder), REWARD, WHERE)
    return Caller(_NAME, _arguments, Answering(_NAME, function, steps=True))


def start_reward(path: str, folder: str = "", *, steps: bool = False) -> Caller:
    """As `load_reward`, but in a child process, which ends when the caller is garbage-collected.

    With `steps` as `load_process_reward`.
    """
    process = UserProcess(_NAME, "steps" if steps else "reward", path, folder, WHERE)
    return Caller(_NAME, _arguments, process, process.prepare)


def _arguments(exchanges: Sequence[Exchange]) -> Arguments:
    return {
        "prompts": [plain_text(each.asked.context) for each in exchanges],
        "responses": [each.response for each in exchanges],
        "messages": [as_messages(each.asked.context) for each in exchanges],
        "rendered": [each.asked.rendered for each in exchanges],
        "finished": [each.finished for each in exchanges],
        "rows": [each.asked.columns() for each in exchanges],
        "turns": [each.dialogue for each in exchanges],
    }
