"""Render dialogues by chat templates, and find where a reply begins and ends in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from workers.data.rows.examples import Dialogue, Message
from workers.data.rows.unusable import Unusable
from workers.data.tokenize.beginnings import beginning
from workers.data.tokenize.template_sandbox import BrokenTemplateError, RefusalError, Template
from workers.errors import DataError
from workers.process.regular_files import read_bounded

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

# For base models, whose only control token is the end of a sequence: the name of a speaker is on a
# separate line, and the end token ends each reply. `default_template` puts the beginning tokens of
# the tokenizer first, so a dialogue that is written out as text has the same tokens.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_DEFAULT_MARKS = re.compile(r"^(System|User|Assistant):$", re.MULTILINE)


_MARK = "qzxreplyqzx"  # a placeholder reply that occurs in no data set
_MOST_TURNS = 1000
_MOST_BYTES = 2**20  # of a Jinja file
_PLAIN_DIALOGUES = (
    ("user",),
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "user"),
)


class ControlTokens:
    """The tokens of a tokenizer that structure a sequence, and so must not occur in content.

    The unknown-word token structures nothing and does not count, unless it is also the beginning,
    end or padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = {str(token) for token in tokenizer.all_special_tokens}
        tokens |= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        offices = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
        if tokenizer.unk_token not in offices:
            tokens.discard(str(tokenizer.unk_token))
        tokens.discard("")  # an empty name would match in every text
        longest_first = sorted(tokens, key=lambda token: (-len(token), token))
        self._tokens = longest_first
        self.pattern = re.compile("|".join(re.escape(token) for token in longest_first))
        ids = tokenizer.convert_tokens_to_ids(longest_first)
        assert isinstance(ids, list), "one id a token"
        self._ids = frozenset(ids)

    def in_text(self, text: str) -> bool:
        """Whether a text contains the text of a control token."""
        return self.pattern.search(text) is not None

    def tail(self, text: str) -> str:
        """The text from its last control token on; all of it if there is none.

        Tokenizers first split a text at control tokens, so the tokens of a tail do not depend on
        the text before it.
        """
        return text[max(0, *(text.rfind(token) for token in self._tokens)) :]

    def agree(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the ids hold as many control tokens as the text contains.

        A tokenizer that normalizes case or spaces could produce a control token from other text.
        """
        if self._ids.isdisjoint(ids):
            return not self.in_text(text)
        return sum(i in self._ids for i in ids) == len(self.pattern.findall(text))


class ChatTemplate:
    """Renders dialogues as the text that the engine and the trainer both tokenize.

    Args:
        tokenizer: Encodes the text; its template is used if `name` is "auto".
        name: "auto" = the tokenizer's, "default" = `DEFAULT_TEMPLATE`, else a Jinja file.
        control: The tokenizer's control tokens.
        date: The date given to the template, in ISO format; "" = now.

    Raises:
        DataError: If the Jinja file cannot be read.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, control: ControlTokens, date: str = ""
    ) -> None:
        self._now = datetime.fromisoformat(date) if date else datetime.now()
        self._template: Template | None = None
        self._last: tuple[Dialogue, str] = ((), "")  # the last context and its `_ending`
        self._tokenizer = tokenizer
        self._control = control
        self._marks = _DEFAULT_MARKS if name == "default" else None
        self._source = template_source(name, tokenizer)
        self._name = name if self._source else f"the chat template of {tokenizer.name_or_path}"

    def prompt(self, context: Dialogue) -> str:
        """The dialogue up to where the assistant begins to speak.

        Raises:
            DataError: If there is no template, or it is not valid Jinja.
            Unusable: If a turn contains a control token, or the template refuses the dialogue.
        """
        self._check(context)
        return self._render(context, to_reply=True)

    def reply(self, context: Dialogue, prompt: str, reply: str) -> str:
        """The rendered reply after `prompt`, up to its end token, which is left out.

        Raises:
            DataError: If the template does not continue the prompt that it rendered, or does not
                end the turn with the tokenizer's end-of-sequence token.
            Unusable: If the reply contains a control token, or the template refuses or alters it.
        """
        turn = Message("assistant", reply)
        self._check((turn,))
        ending = self._ending(context, prompt)
        whole = self._render((*context, turn), to_reply=False)
        body = whole[len(prompt) : len(whole) - len(ending)]
        if not whole.startswith(prompt) or not whole.endswith(ending):
            raise Unusable("chat template alters the reply")
        if not body.rstrip().endswith(reply.strip()):
            raise Unusable("chat template alters the reply")
        if str(self._tokenizer.eos_token) in body:
            raise self._error(
                "the template writes the end token into the assistant's turn, before the reply: a "
                "model trained so would stop there"
            )
        end = self._control.pattern.search(ending)
        self._check_end(end.group() if end else "")
        assert end is not None
        return body + ending[: end.start()]

    def _ending(self, context: Dialogue, prompt: str) -> str:
        """The text that the template writes after a reply to `context`.

        It is found by rendering a placeholder reply, because the words of a real reply may also
        occur in the text of the template.
        """
        if self._last[0] == context:
            return self._last[1]
        mark = _MARK
        while mark in prompt:
            mark += "q"
        whole = self._render((*context, Message("assistant", mark)), to_reply=False)
        if not whole.startswith(prompt):
            raise self._error(
                "a reply is not where the template puts replies: the rendered dialogue "
                "does not begin with its own prompt",
            )
        place = whole.rfind(mark, len(prompt))
        if place < 0:
            raise self._error("the template leaves out or alters what the assistant says")
        self._last = (context, whole[place + len(mark) :])
        return self._last[1]

    def turns(self, dialogue: Dialogue) -> list[tuple[str, str]]:
        """Prompt and reply of every assistant turn after the first user turn.

        Raises:
            DataError: As `reply`; or if a turn is rendered differently when more turns follow it.
            Unusable: As `prompt` and `reply`.
        """
        self._check(dialogue)
        turns: list[tuple[str, str]] = []
        so_far = ""
        for i, turn in enumerate(dialogue):
            if turn.role != "assistant" or not any(t.role == "user" for t in dialogue[:i]):
                continue
            prompt = self._render(dialogue[:i], to_reply=True)
            if not prompt.startswith(so_far):
                raise self._error(
                    "the template renders a turn differently when more turns follow, so not every "
                    "turn can be trained in one row",
                    " or train on the last turn alone (data.train_on=last)",
                )
            turns.append((prompt, self.reply(dialogue[:i], prompt, turn.content)))
            so_far = "".join((*turns[-1], str(self._tokenizer.eos_token)))
        return turns

    def _check(self, dialogue: Dialogue) -> None:
        if len(dialogue) > _MOST_TURNS:
            raise Unusable(f"over {_MOST_TURNS:,} turns")
        for turn in dialogue:
            if self._control.in_text(turn.content) or (
                self._marks is not None and self._marks.search(turn.content)
            ):
                raise Unusable("holds a control token")

    def _check_end(self, found: str) -> None:
        eos = str(self._tokenizer.eos_token)
        if found == eos:
            return
        ends = f"by {found!r}" if found else "by no token"
        fix = f"; or set eos_token to {found!r} in tokenizer_config.json" if found else ""
        raise self._error(
            f"the template ends the assistant's turn {ends}, but the tokenizer's end-of-sequence "
            f"token is {eos!r}: a model trained so would not stop",
            fix,
        )

    def _render(self, dialogue: Dialogue, *, to_reply: bool) -> str:
        if self._template is None:
            self._template = self._compiled()
        messages = [{"role": turn.role, "content": turn.content} for turn in dialogue]
        try:
            return self._template.render(messages, to_reply=to_reply)
        except RefusalError as error:  # such as a second system turn
            raise Unusable(f"chat template refuses the dialogue: {error}") from error
        except BrokenTemplateError as error:
            self._check_plain_dialogues(self._template)
            raise Unusable(f"chat template fails on the dialogue: {error}") from error

    def _compiled(self) -> Template:
        if self._source is None and self._tokenizer.chat_template is None:
            raise DataError(
                "a dialogue needs a chat template, and the tokenizer has none",
                where=str(self._tokenizer.name_or_path),
                fix="set data.chat_template=default (plain speakers' names, for base models), or "
                "to the path of a Jinja file",
            )
        try:
            source = self._source or self._tokenizer.get_chat_template()
            special = self._tokenizer.special_tokens_map
            return Template(source, special, self._now)
        except BrokenTemplateError as error:
            raise self._error(f"not a valid Jinja template: {error}") from error
        except ValueError as error:  # several templates, and none is the default
            raise self._error(f"no chat template: {error}") from error

    def _check_plain_dialogues(self, template: Template) -> None:
        """Distinguish a broken template from one that fails on an unusual dialogue.

        Raises:
            DataError: The template fails on a plain dialogue, too.
        """
        for roles in _PLAIN_DIALOGUES:
            messages = [{"role": role, "content": "words"} for role in roles]
            try:
                template.render(messages, to_reply=roles[-1] == "user")
            except RefusalError:
                continue
            except BrokenTemplateError as error:
                raise self._error(f"the chat template is broken: {error}") from error

    def _error(self, what: str, fix: str = "") -> DataError:
        return DataError(
            what,
            where=self._name,
            fix="choose another template (data.chat_template=default, or the path of a Jinja "
            f"file){fix}",
        )


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning tokens of the tokenizer, then `DEFAULT_TEMPLATE`."""
    words = tokenizer.convert_ids_to_tokens(list(beginning(tokenizer)))
    return "".join(f"{{{{ {json.dumps(word)} }}}}" for word in words) + DEFAULT_TEMPLATE


def template_source(name: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The Jinja text of a template; None = the tokenizer's own ("auto").

    Args:
        name: "auto", "default", or the path of a Jinja file.
        tokenizer: The tokenizer that encodes the rendered text.

    Raises:
        DataError: If the file cannot be read.
    """
    return default_template(tokenizer) if name == "default" else template_file(name)


def template_file(name: str) -> str | None:
    """The Jinja text of a template's file; None for "auto" and "default", which name no file.

    Raises:
        DataError: If the file cannot be read.
    """
    if name in ("auto", "default"):
        return None
    try:
        return read_bounded(name, _MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the chat template: {error}",
            where=name,
            fix="data.chat_template is auto, default, or the path of a Jinja file",
        ) from error
