"""Tasks for people: K completions per prompt from any models of the run, to be ranked in a page.

`python -m orchestrator.label make` reads samples/tasks.jsonl, which this stage writes.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.planning.stage_graph import collected_are_scored
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.run_files.folder import write_text
from orchestrator.run_files.samples import asked_fields
from orchestrator.session.session import Session
from orchestrator.stages.completions import Completions, sample_completions
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError, RewardError
from workers.records.gather import told


@dataclass(slots=True)
class _Task:
    """The answers to one prompt, each text once."""

    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def collect(session: Session) -> None:
    """Sample completions, and write them as tasks."""
    settings = session.config.collect
    session.live.stage("collect", len(settings.models))
    prompts = _different(session.source.prompts("reward_model", 0, settings.prompts))
    counts = _counts(session, len(prompts))
    tasks = [_Task(prompt) for prompt in prompts]
    left_out: Counter[str] = Counter()
    for number, name in enumerate(settings.models):
        if any(counts[name]):
            found = sample_completions(
                session, name, prompts, counts[name], "collect", settings.temperature
            )
            session.fleet.rollout.sleep().result()
            scores = _scores(session, name, prompts, found)
            _add(session, tasks, name, found, scores, left_out)
        session.live.advance(number + 1)
    kept = [task for task in tasks if len(task.texts) > 1]
    left_out["prompts with fewer than 2 different answers"] = len(tasks) - len(kept)
    for what, count in left_out.items():
        if count:
            session.live.note(f"left out: {count:,} {what}")
    _write(session, kept)


def _different(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt once: a small data set repeats them."""
    return list({prompt.id: prompt for prompt in prompts}.values())


def _counts(session: Session, prompts: int) -> dict[str, list[int]]:
    """Completions per model and prompt: K is drawn per prompt, and shared as `shares` says.

    Of what does not divide, each prompt draws who gets it.
    """
    settings = session.config.collect
    rng = random.Random(session.seed("collect", "k"))
    shares = settings.shares or [1.0] * len(settings.models)
    found: dict[str, list[int]] = {name: [0] * prompts for name in settings.models}
    for n in range(prompts):
        k = rng.randint(settings.min_completions, settings.max_completions)
        exact = [k * share / sum(shares) for share in shares]
        for name, value in zip(settings.models, exact, strict=True):
            found[name][n] = int(value)
        rest = [value - int(value) for value in exact]
        for _ in range(k - sum(map(int, exact))):
            at = rng.choices(range(len(rest)), rest)[0]
            found[settings.models[at]][n] += 1
            rest[at] = 0.0
    return found


def _scores(
    session: Session, name: str, prompts: Sequence[Prompt], found: Completions
) -> list[float]:
    """Scores of the reward model in the order of the batch; empty without one."""
    if not collected_are_scored(session.config):
        return []
    spec = reward_spec(session.config, session.need("reward_model"), session.need(name))
    session.fleet.reward.load(spec).result()
    scored = session.fleet.reward.score_batch(found.batch, session.asked(prompts)).result()
    if failures := told(scored):
        raise RewardError(
            f"{len(failures)} of {len(scored.failures)} answers got no score: {failures[0]}",
            where="collect", fix="correct the reward, or leave model.checkpoints.reward_model out",
        )  # fmt: skip
    by_id = dict(zip(scored.ids.tolist(), scored.values.tolist(), strict=True))
    return [by_id[int(i)] for i in found.batch.ids]


def _add(
    session: Session,
    tasks: Sequence[_Task],
    name: str,
    found: Completions,
    scores: Sequence[float],
    left_out: Counter[str],
) -> None:
    """Add a model's answers; data files refuse empty ones, and people rank equal ones apart."""
    at = 0
    for task, completions in zip(tasks, found.tokens, strict=True):
        for tokens in completions:
            text = session.source.detokenize(tokens)
            if not text.strip():
                left_out["empty answers"] += 1
            elif text in task.texts:
                left_out["repeated answers"] += 1
            else:
                task.texts.append(text)
                task.tokens.append([int(i) for i in tokens])
                task.models.append(name)
                task.scores += scores[at : at + 1]
            at += 1


def _write(session: Session, tasks: Sequence[_Task]) -> None:
    if not tasks:
        raise EmptyDatasetError(
            "no prompt has two different answers",
            where="collect",
            fix="raise collect.temperature or collect.max_completions",
        )
    path = session.folder.samples / "tasks.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(tasks))
    write_text(path, "".join(lines))
    session.live.note(f"{len(tasks):,} tasks: python -m orchestrator.label make tasks.db {path}")


def _rows(tasks: Iterable[_Task]) -> Iterable[dict[str, object]]:
    for task in tasks:
        row: dict[str, object] = {
            "id": task.prompt.id,
            **asked_fields(task.prompt.context),
            "completions": task.texts,
            "completion_tokens": task.tokens,
            "models": task.models,
        }
        yield row | ({"scores": task.scores} if task.scores else {})
