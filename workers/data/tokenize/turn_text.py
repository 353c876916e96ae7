"""What stands between two turns of the policy: an observation, as the chat template writes it.

Sampled tokens are never decoded and encoded again. An observation is rendered once, as the turn
that the template writes after a reply, and tokenized once, after the end token of that reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from workers.data.rows.examples import Dialogue, Message, Speaker
from workers.data.rows.unusable import Unusable
from workers.data.tokenize.templates import ChatTemplate, ControlTokens
from workers.errors import ConfigError

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

PLACE = "{observation}"
_ASKED, _SAID, _TOLD = "qzxaskedqzx", "qzxsaidqzx", "qzxtoldqzx"
# A reply in the form of models that think first: templates like to remove that from earlier turns.
_THOUGHT = f"<think>\n{_SAID}\n</think>\n\n{_SAID}"


class TurnText:
    """Token ids of observations.

    Args:
        tokenizer: Of the policy, with its chat template.
        template: "auto" = the tokenizer's, "default" = the built-in one, else the path of a file.
        role: Who says an observation, in the dialogue.
        text: Written after a reply, with `{observation}` in it; "" = what the template writes.
        date: The date given to the template, in ISO format; "" = now.

    Raises:
        ConfigError: The template rewrites earlier turns, or refuses such a dialogue; or there is
            none; or `text` has no place for the observation.
        DataError: The template cannot be read, or does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "auto",
        role: str = "user",
        text: str = "",
        date: str = "",
    ) -> None:
        self._tokenizer, self._text, self._role = tokenizer, text, role
        self._end, self._eos = str(tokenizer.eos_token), tokenizer.eos_token_id
        self._control = ControlTokens(tokenizer)
        self._template = ChatTemplate(tokenizer, template, self._control, date)
        if text:
            if text.count(PLACE) != 1:
                raise _wrong("turn_text", f"it needs {PLACE} once",
                             "write it where the observation stands")  # fmt: skip
            return
        if template == "auto" and not tokenizer.chat_template:
            raise _wrong(
                "turn_text",
                "the tokenizer has no chat template, which would say how an observation is written",
                f"write the text after a reply, such as '\\nUser: {PLACE}\\nAssistant:', or set "
                "data.chat_template",
            )
        self._check()

    def __call__(self, observation: str) -> list[int]:
        """Ids from after the end token of a reply up to where the policy speaks again.

        Raises:
            Unusable: The observation holds a control token, or the template refuses or alters it.
        """
        if self._control.in_text(observation):
            raise Unusable("the observation holds a control token")
        after = (
            self._text.replace(PLACE, observation) if self._text else self._rendered(observation)
        )
        # After the end token, because some tokenizers write the first word of a text differently.
        ids: list[int] = self._tokenizer.encode(self._end + after, add_special_tokens=False)
        if ids[:1] != [self._eos]:
            raise Unusable("the observation does not tokenize after the end of a turn")
        return ids[1:]

    def _rendered(self, observation: str) -> str:
        before = (Message("user", _ASKED),)
        head = self._spoken(before, _SAID)
        whole = self._template.prompt(
            (*before, Message("assistant", _SAID), self._told(observation))
        )
        if not whole.startswith(head) or observation.strip() not in whole[len(head) :]:
            raise Unusable("the chat template alters the observation")
        return whole[len(head) :]

    def _told(self, observation: str) -> Message:
        return Message(cast(Speaker, self._role), observation)

    def _spoken(self, context: Dialogue, reply: str) -> str:
        """The dialogue with a reply, up to its end token."""
        prompt = self._template.prompt(context)
        return prompt + self._template.reply(context, prompt, reply) + self._end

    def _check(self) -> None:
        """Render three turns, and compare each with the beginning of the next."""
        for reply in (_SAID, _THOUGHT):
            dialogue: Dialogue = (Message("user", _ASKED),)
            try:
                for _ in range(2):
                    head = self._spoken(dialogue, reply)
                    dialogue = (*dialogue, Message("assistant", reply), self._told(_TOLD))
                    if not self._template.prompt(dialogue).startswith(head):
                        raise Unusable("a turn is rendered differently when more turns follow")
            except Unusable as why:
                raise ConfigError(
                    f"the chat template rewrites earlier turns, or refuses them: {why}; the policy "
                    "would not read what it sampled",
                    where="data.chat_template",
                    fix="give another template (data.chat_template=default, or the path of a Jinja "
                    f"file), or write environment.turn_text with {PLACE}",
                ) from why


def _wrong(key: str, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=f"environment.{key}", fix=fix)
