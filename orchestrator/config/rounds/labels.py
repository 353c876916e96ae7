"""Settings of the stage label: answers that are sampled and ranked within the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.config.ranges import between, needed, positive
from orchestrator.config.rounds.ai_labels import AILabelConfig
from workers.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class LabelConfig:
    """Answers of the run's models, sampled and ranked for reward modelling."""

    labeler: str = needed("gold")
    """Who ranks: gold (the pocket world's labeler), function, people (in a page: the run makes
    their tasks, stops, and goes on with what they said), endpoint (a chat model), engine (a model
    in our engines), or package.module:NAME of your own."""
    function: str = ""
    """The function as package.module:callable, (prompts, completions) -> a list of numbers per
    prompt, one per completion, higher is better (labeler: function)."""
    prompts: int = positive(1024)
    """Prompts whose rankings train; of a smaller data set each once."""
    heldout_prompts: int = positive(128)
    """Further prompts, whose rankings measure the reward model and do not train it."""
    min_completions: int = between(2, 4, 9)
    """Smallest number K of answers; K is drawn per prompt from [min, max]."""
    max_completions: int = between(2, 9, 9)
    """Largest K."""
    models: list[str] = field(default_factory=lambda: ["sft"])
    """Models that answer: names of model.checkpoints, or of what earlier stages make."""
    shares: list[float] = field(default_factory=list)
    """Share of the answers from each model, in any unit; [] = equal."""
    temperature: float = positive(1.0)
    """Sampling temperature."""
    scored: bool = False
    """The reward model so far scores the answers first, which shows how many pairs of the labels
    it orders right before it is trained on them."""
    ai: AILabelConfig = field(default_factory=AILabelConfig)
    """Labels by a model: labeler endpoint or engine (docs/constitution.md)."""

    def check(self, key: str) -> None:
        """Check the models, their shares, and the numbers of answers."""
        check_asked(self, key)


def check_asked(settings: LabelConfig, key: str) -> None:
    """Check who answers how often."""
    low, high = settings.min_completions, settings.max_completions
    if low > high:
        raise ConfigError(
            f"min_completions={low}, max_completions={high}",
            where=f"{key}.min_completions",
            fix="choose 2 <= min_completions <= max_completions <= 9",
        )
    if not settings.models or len(set(settings.models)) < len(settings.models):
        raise ConfigError(
            f"models={settings.models}", where=f"{key}.models", fix="name each model once"
        )
    check_shares(settings.shares, settings.models, f"{key}.shares")


def check_shares(shares: Sequence[float], models: Sequence[str], where: str) -> None:
    """Check that there is a share for each model, or none at all."""
    good = all(0 < share < math.inf for share in shares)
    if shares and (len(shares) != len(models) or not good):
        raise ConfigError(
            f"shares={[*shares]} of {len(models)} models",
            where=where,
            fix="give one number above 0 per model, or []",
        )
