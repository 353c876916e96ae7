"""Tasks for people: K completions per prompt from any models of the run, to be ranked in a page.

`python -m orchestrator.label make` reads samples/tasks.jsonl, which this stage writes.
"""

from __future__ import annotations

from orchestrator.planning.stage_graph import collected_are_scored
from orchestrator.process.program import invocation
from orchestrator.session.session import Session
from orchestrator.stages.labels.tasks import different, sample_tasks, tell_left_out, write_tasks


def collect(session: Session) -> None:
    """Sample completions, and write them as tasks."""
    settings = session.config.collect
    session.live.stage("collect", len(settings.models))
    prompts = different(session.source.prompts("reward_model", 0, settings.prompts))
    scored = collected_are_scored(session.config)
    found = sample_tasks(session, "collect", settings, prompts, scored=scored)
    tell_left_out(session, found.left_out)
    path = session.folder.samples / "tasks.jsonl"
    write_tasks(path, found.tasks)
    number = len(found.tasks)
    label = invocation("label", "orchestrator.label")
    session.live.note(f"{number:,} tasks: {label} make tasks.db {path}")
