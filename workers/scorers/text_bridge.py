"""Conversion of the policy's sequences for a reward model with another tokenizer.

Dialogues go through the scorer's chat template, plain text is unchanged. Both use the renderer of
the training rows (`workers.data.tokenize.render`), so that a scorer gets the format of its training
data. A scorer without a chat template gets dialogues in the built-in template for base models.
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

_ANY_LENGTH = 1 << 40  # tokens: no limit here; the caller checks the model's positions
_PROBE = (Message("user", "a"),)


class TextBridge:
    """Builds the token rows for one scorer.

    Args:
        tokenizer: The scorer's tokenizer.

    Raises:
        DataError: The chat template cannot render an answer that ends with the end token.
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
        # Any other reason is about the probe's text, which this tokenizer cannot encode.
        if isinstance(probe, Rejected) and probe.reason.startswith("chat template"):
            raise DataError(
                f"the reward model's chat template does not render a question and its answer: "
                f"{probe.reason}",
                where=str(tokenizer.name_or_path),
                fix="correct chat_template in the folder of the reward model",
            )

    def __call__(self, exchanges: Sequence[Exchange]) -> tuple[Ragged, list[str]]:
        """Token rows and failure reasons, one of each per exchange.

        A row is the prompt, the response, and the end token if the response ended by itself. If the
        reason is not empty, the exchange cannot be scored, and its row is empty.
        """
        contexts = [each.asked.context for each in exchanges]
        answered = self._renderer.comparisons(
            [
                Comparison(context, (each.response or " ",), (1,), "")
                for context, each in zip(contexts, exchanges, strict=True)
            ]
        )
        # For responses without text: only the end token follows the prompt.
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
    """Test the first prompts of a run on a scorer; returns a warning if some cannot be scored.

    Args:
        bridge: The scorer's bridge.
        asked: The prompts.
        where: The scorer's folder, for errors.

    Raises:
        DataError: None of them can be scored.
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
