"""Settings of labels by a model: which pairs are asked, how, and whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.chat_model import ChatModelConfig
from orchestrator.config.ranges import path, positive, words
from workers.errors import ConfigError


class AskedPairs(Enum):
    """The pairs of a prompt's K answers that a model is asked about."""

    all = "all"
    """Every pair, K (K - 1) / 2."""
    adjacent = "adjacent"
    """Each answer and the next one, K - 1; only these pairs train."""


class LabelKind(Enum):
    """What a pair's label is."""

    soft = "soft"
    """The probability that the first answer is better, mean of both orders."""
    hard = "hard"
    """The better answer, or a tie; of all pairs a ranking is made (Copeland)."""


class ChosenPrinciple(Enum):
    """The principles that a question names."""

    random = "random"
    """One, drawn per pair, the same in both orders."""
    all = "all"
    """All of them in every question."""


@dataclass(slots=True, kw_only=True)
class AILabelConfig:
    """Labels by a model (labeler: endpoint, engine)."""

    principles: str = path("harmless", needed=True)
    """Name of a file in conf/constitution, or path of a YAML file with principles."""
    principle: ChosenPrinciple = ChosenPrinciple.random
    """The principles that a question names."""
    pairs: AskedPairs = AskedPairs.all
    """The pairs that are asked, each in both orders."""
    labels: LabelKind = LabelKind.soft
    """What becomes of the answers."""
    form: str = words("")
    """The question, with {principle}, {prompt}, {first} and {second}; "" = ours."""
    checkpoint: str = path("")
    """Folder of the judging model in the run's own engines (labeler: engine)."""
    question_tokens: int = positive(2048, 1_000_000)
    """Longest question that the engines are set up for, as far as the model's positions go; answers
    with a longer one are left out."""
    endpoint: ChatModelConfig = field(default_factory=ChatModelConfig)
    """The chat model (labeler: endpoint)."""
    cache: str = path("")
    """Folder of the chat model's answers, which are not asked for again; "" = in the run folder."""

    def check(self, key: str) -> None:
        """Check the places of the question's form."""
        places = ("{principle}", "{prompt}", "{first}", "{second}")
        missing = [place for place in places if self.form and place not in self.form]
        if missing:
            raise ConfigError(
                f"the question lacks {', '.join(missing)}",
                where=f"{key}.form",
                fix="write each of {principle}, {prompt}, {first} and {second} once",
            )
