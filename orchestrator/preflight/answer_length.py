"""Whether the answers of a fine-tuned model may be as long as those that it learns from."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.expand import expand
from workers.data.source import DataSource

_LOOKED_AT = 256  # demonstrations


def check_answer_length(config: Config, source: DataSource) -> Iterable[str]:
    """Tell that most demonstrations are longer than the answers that will be sampled."""
    runs = [run for run in expand(config) if run.stage is StageName.sft and not run.demonstrations]
    count = source.demonstration_count() if runs else None
    if not count:  # None: the pocket world, whose demonstrations fit
        return []
    rows = source.demonstrations("train", 0, min(count, _LOOKED_AT)).split()
    usual = int(statistics.median(len(reply) for _, reply in rows))
    most = runs[0].config.rollout.max_response_tokens
    if usual <= most:
        return []
    return [
        f"half of the demonstrations have {usual:,} tokens or more, answers are cut after "
        f"{most:,}: raise rollout.max_response_tokens"
    ]
