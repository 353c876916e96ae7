"""Questions in words to a model in the run's engines, by its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.session.session import Fit, Session
from workers.data.records import Prompt
from workers.data.tokenize.templates import ControlTokens
from workers.data.tokenize.tokenizers import detokenize, load_tokenizer, token_ids
from workers.errors import ConfigError
from workers.model_folders.shape import read_shape
from workers.records.generation import Finish, Sampling

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

CONTROL = "a question with the text of a control token"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that answers questions; a question is a turn of a chat if it has a template."""

    folder: str
    tokenizer: PreTrainedTokenizerBase
    fit: Fit

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return bool(self.tokenizer.chat_template)

    def tokens(self, question: str) -> tuple[int, ...] | str:
        """The ids of a question as the model gets it, or why it cannot be asked."""
        if ControlTokens(self.tokenizer).in_text(question):
            return CONTROL
        return _ids(self.tokenizer, question)


def model_of(folder: str, question_tokens: int, answer_tokens: int, where: str) -> Model:
    """A model for questions, with its tokenizer; questions fit its positions.

    Args:
        folder: Hugging Face folder.
        question_tokens: Most tokens of a question, if the model has the positions.
        answer_tokens: Most tokens of its answer.
        where: The key that names the folder.

    Raises:
        CheckpointError: there is no such folder, or it has no tokenizer.
        ConfigError: the model has no positions left for a question.
    """
    positions = read_shape(Path(folder)).positions
    if positions is not None:
        question_tokens = min(question_tokens, positions - answer_tokens)
    if question_tokens < 1:
        raise ConfigError(
            f"the model has {positions:,} positions, and its answers may have {answer_tokens:,} "
            "tokens",
            where=f"{where}={folder}",
            fix="choose a model of longer texts, or shorter answers",
        )
    tokenizer = load_tokenizer(folder)
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses one without"
    return Model(folder, tokenizer, Fit(eos, token_ids(tokenizer), question_tokens, answer_tokens))


def letters_of(model: Model, question: str, letters: Sequence[str], where: str) -> tuple[int, ...]:
    """The token with which the answer to a question begins, for each letter.

    Outside of chats a letter follows a space, if the tokenizer has letters after spaces.

    Raises:
        ConfigError: two letters begin with the same token, or with an unknown one.
    """
    for space in ("",) if model.chats else (" ", ""):
        found = [_next(model, question, space + letter) for letter in letters]
        if None not in found and len(set(found)) == len(letters):
            return tuple(i for i in found if i is not None)
    raise ConfigError(
        f"the judge's tokenizer has no tokens of their own for the answers {' and '.join(letters)}",
        where=f"{where}={model.folder}",
        fix="choose a model whose tokenizer was made from text",
    )


def _next(model: Model, question: str, text: str) -> int | None:
    """The first token of a text after a question; None if it has none of its own."""
    before, tokenizer = _ids(model.tokenizer, question), model.tokenizer
    chat = model.chats
    after = (*before, *_bare(tokenizer, text)) if chat else _ids(tokenizer, question + text)
    own = after[len(before) :]
    if after[: len(before)] != before or not own or own[0] == tokenizer.unk_token_id:
        return None
    return own[0]


def _ids(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    if tokenizer.chat_template:
        message = [{"role": "user", "content": question}]
        given = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert isinstance(given, str)
        return _bare(tokenizer, given)
    return tuple(tokenizer(question)["input_ids"])


def _bare(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Said:
    """What a model sampled in answer to a question."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # nats, after temperature, among the allowed tokens
    ended: bool  # by itself


def ask_engines(
    session: Session,
    model: Model,
    questions: Sequence[tuple[int, ...] | str],
    sampling: Sampling,
    *path: str | int,
) -> list[Said | str]:
    """One sampled answer per question, or why there is none.

    Args:
        session: The run.
        model: Who is asked.
        questions: Token ids, or the reason why a question has none.
        sampling: Temperature and length of the answers.
        path: Names the seeds.
    """
    most = model.fit.prompt
    long = f"a question of more than {most:,} tokens"
    asked = [q if isinstance(q, str) or len(q) <= most else long for q in questions]
    prompts = [Prompt(n, q, "", n) for n, q in enumerate(asked) if not isinstance(q, str)]
    if not prompts:
        return [q for q in asked if isinstance(q, str)]
    rollout, version = session.engines_on(model.folder, model.fit)
    requests = session.requests(prompts, 1, *path)
    batch = rollout.fetch(rollout.generate(requests, sampling, version).result()).result()
    row = {int(i): n for n, i in enumerate(batch.ids)}
    found: list[Said | str] = [q if isinstance(q, str) else "" for q in asked]
    for prompt, request in zip(prompts, requests, strict=True):
        n = row[request.ids[0]]
        found[prompt.id] = Said(
            tuple(batch.response(n)),
            tuple(map(float, np.asarray(batch.logprobs.row(n)))),
            int(batch.finish[n]) == Finish.STOP,
        )
    return found


def text_of(model: Model, said: Said) -> str:
    """The text of an answer; outside of chats up to its first empty line. "" = it was cut."""
    text = detokenize(model.tokenizer, said.tokens).strip()
    if not model.chats and "\n\n" in text:
        return text.partition("\n\n")[0].strip()
    return text if said.ended else ""
