"""What the plan says of labels and revisions by a model: whom it asks, and how often."""

from __future__ import annotations

from orchestrator.config.constitution import Critic
from orchestrator.config.rounds.ai_labels import AskedPairs, LabelKind
from orchestrator.config.schema import Config


def questions_per_prompt(completions: int, which: AskedPairs) -> int:
    """Questions about K answers to one prompt, both orders of each pair."""
    every = completions * (completions - 1)
    return every if which is AskedPairs.all else 2 * (completions - 1)


def ai_label_facts(config: Config) -> list[str]:
    """Sentences on the questions of a stage run whose labeler is a model; [] for others."""
    label = config.label
    settings, (low, high) = label.ai, (label.min_completions, label.max_completions)
    if label.labeler not in ("endpoint", "engine"):
        return []
    least, most = (questions_per_prompt(k, settings.pairs) for k in (low, high))
    prompts = label.prompts + label.heldout_prompts
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    known = ", known answers are free" if label.labeler == "endpoint" else ""
    who = settings.endpoint.model if label.labeler == "endpoint" else settings.checkpoint
    kind = "probabilities" if settings.labels is LabelKind.soft else "outcomes"
    facts = [
        f"{who} is asked about {settings.pairs.value} pairs in both orders, by principles of "
        f"{settings.principles}",
        f"{each} questions per prompt, at most {prompts * most:,} in all{known}; labels are {kind}",
    ]
    checkpoints = config.model.checkpoints
    own = [name for name in label.models if getattr(checkpoints, name, None) == who and who]
    if own:
        facts.append(f"{own[0]} judges its own answers, which models favour")
    return facts


def constitution_facts(config: Config) -> list[str]:
    """Sentences on a run of the stage constitution."""
    settings = config.constitution
    critic = {
        Critic.policy: f"{settings.model} itself",
        Critic.checkpoint: settings.checkpoint,
        Critic.endpoint: settings.endpoint.model,
        Critic.function: settings.function,
    }[settings.critic]
    prompts = settings.prompts + settings.heldout_prompts
    each = 1 if settings.critic is Critic.function else 2
    return [
        f"{settings.prompts:,} prompts to train on and {settings.heldout_prompts:,} held out, an "
        f"answer of {settings.model} to each",
        f"{settings.revisions} revision(s) by {critic}, by principles of {settings.principles}: at "
        f"most {each * settings.revisions * prompts:,} questions",
    ]
