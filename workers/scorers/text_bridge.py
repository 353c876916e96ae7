"""Sequences of the policy as a reward model with a tokenizer of its own saw its training data.

A dialogue goes through the scorer's chat template, bare text stands as it is: both by the renderer
that made the training rows (`workers.data.tokenize.render`), so that a scorer is asked in the
format that it has learnt. A scorer without a chat template reads dialogues in the built-in one for
base models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workers.data.rows.examples import Comparison, Message, PromptExample, Rejected
from workers.data.tokenize.render import Renderer
from workers.data.tokenize.token_rows import PromptRow, RankedRow
from workers.errors import DataError
from workers.records.arrays import Ragged
from workers.user_functions.reward_function import Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workers.data.rows.asked import Asked

_ANY_LENGTH = 1 << 40  # tokens: it is for the model's positions to say what is too long
_PROBE = (Message("user", "a"),)


class TextBridge:
    """Makes the token rows of one scorer.

    Args:
        tokenizer: The scorer's.

    Raises:
        DataError: If its chat template cannot render an answer that ends with its end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert isinstance(tokenizer.eos_token_id, int), "load_tokenizer refuses one without"
        self._end = tokenizer.eos_token_id
        self._renderer = Renderer(
            tokenizer,
            template="auto" if tokenizer.chat_template else "default",
            max_prompt_tokens=_ANY_LENGTH,
            max_completion_tokens=_ANY_LENGTH,
        )
        (probe,) = self._renderer.comparisons([Comparison(_PROBE, ("a",), (1,), "")])
        # for any other reason it is the words of the probe that this tokenizer cannot write
        if isinstance(probe, Rejected) and probe.reason.startswith("chat template"):
            raise DataError(
                f"the reward model's chat template does not render a question and its answer: "
                f"{probe.reason}",
                where=str(tokenizer.name_or_path),
                fix="correct chat_template in the folder of the reward model",
            )

    def __call__(self, exchanges: Sequence[Exchange]) -> tuple[Ragged, list[str]]:
        """Token rows and reasons, one each.

        A row is the prompt, the response, and the end token if the response ended by itself. Where
        there is a reason there is no row worth scoring, and it is empty.
        """
        contexts = [each.asked.context for each in exchanges]
        answered = self._renderer.comparisons(
            [
                Comparison(context, (each.response or " ",), (1,), "")
                for context, each in zip(contexts, exchanges, strict=True)
            ]
        )
        # for answers that hold no text: their end token alone follows the prompt
        asked = self._renderer.prompts([PromptExample(context, "") for context in contexts])
        rows: list[list[int]] = []
        reasons: list[str] = []
        for each, whole, prompt in zip(exchanges, answered, asked, strict=True):
            row, reason = self._row(each, whole, prompt)
            rows.append(row)
            reasons.append(reason)
        return Ragged.from_rows(rows, np.int32), reasons

    def _row(
        self, each: Exchange, whole: RankedRow | Rejected, prompt: PromptRow | Rejected
    ) -> tuple[list[int], str]:
        found = whole if each.response.strip() else prompt
        if isinstance(found, Rejected):
            return [], f"reward model: {found.reason}"
        row: list[int] = found.tokens.tolist()
        if isinstance(found, RankedRow):
            (reply,) = found.completions
            assert reply[-1] == self._end, "no reply is cut here"
            row += reply[:-1].tolist()
        return [*row, self._end] if each.finished else row, ""


def require_prompts(bridge: TextBridge, asked: Sequence[Asked], where: str) -> list[str]:
    """Try the first prompts of a run on a scorer; a sentence on those that it cannot read.

    Args:
        bridge: The scorer's.
        asked: The prompts.
        where: The scorer's folder, for errors.

    Raises:
        DataError: It can read none of them.
    """
    _, reasons = bridge([Exchange(each, "a", finished=True) for each in asked])
    refused = [reason for reason in reasons if reason]
    if not refused:
        return []
    count = f"{len(refused)} of the first {len(reasons)} prompts"
    if len(refused) == len(reasons):
        raise DataError(
            f"no answer to any of the first {len(reasons)} prompts can be scored: {refused[0]}",
            where=where,
            fix="give prompts that the reward model's chat template takes, or another template",
        )
    return [f"answers to {count} will have no reward and be dropped: {refused[0]}"]
