"""Tasks to rank: several different answers per prompt, from one or more models of the run."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.planning.worker_specs import reward_spec
from orchestrator.run_files.folder import write_text
from orchestrator.run_files.prompt_rows import read_by_prompt
from orchestrator.run_files.samples import asked_fields
from orchestrator.session.session import Session
from orchestrator.stages.labels.completions import Completions, sample_completions
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError, RewardError
from workers.records.gather import told


class Asking(Protocol):
    """Who answers how often: the settings that `collect` and `label` share."""

    min_completions: int
    max_completions: int
    models: list[str]
    shares: list[float]
    temperature: float


@dataclass(slots=True)
class Task:
    """The answers to one prompt, each text once."""

    prompt: Prompt
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # by a reward model; [] = not scored


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tasks with at least two answers, and what was left out."""

    tasks: list[Task]
    answers: int  # that were sampled
    left_out: Counter[str]  # answers, by reason


EMPTY, REPEATED = "empty answers", "repeated answers"
ALONE = "answers without another one to compare with"


def sample_tasks(
    session: Session, stage: str, settings: Asking, prompts: Sequence[Prompt], *, scored: bool
) -> Sampled:
    """Sample answers to the prompts, and have a reward model score them if `scored`.

    Args:
        session: The run.
        stage: Names the seeds.
        settings: Who answers how often.
        prompts: The prompts, each once.
        scored: Whether the reward model of the stage scores every answer.

    Raises:
        RewardError: an answer got no score.
        EmptyDatasetError: no prompt has two different answers.
    """
    counts = _counts(session, stage, settings, len(prompts))
    tasks = [Task(prompt) for prompt in prompts]
    left_out: Counter[str] = Counter()
    for number, name in enumerate(settings.models):
        if any(counts[name]):
            found = sample_completions(
                session, name, prompts, counts[name], stage, settings.temperature
            )
            session.fleet.rollout.sleep().result()
            scores = _scores(session, stage, name, prompts, found) if scored else []
            _add(session, tasks, name, found, scores, left_out)
        session.live.advance(number + 1)
    kept = [task for task in tasks if len(task.texts) > 1]
    left_out[ALONE] += sum(len(task.texts) for task in tasks) - sum(len(t.texts) for t in kept)
    if not kept:
        raise EmptyDatasetError(
            "no prompt has two different answers",
            where=stage,
            fix=f"raise {stage}.temperature or {stage}.max_completions",
        )
    return Sampled(kept, sum(map(sum, counts.values())), +left_out)


def different(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt once: a small data set repeats them."""
    return list({prompt.id: prompt for prompt in prompts}.values())


def tell_left_out(session: Session, left_out: Counter[str]) -> None:
    """Show what was left out."""
    for what, count in left_out.items():
        session.live.note(f"left out: {count:,} {what}")


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write the tasks as `python -m orchestrator.label make` and `read_tasks` read them."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(tasks)))


def read_tasks(path: Path, prompts: Sequence[Prompt]) -> list[Task]:
    """The tasks that `write_tasks` wrote.

    Args:
        path: The file.
        prompts: Those that were asked.

    Raises:
        BrokenCheckpointError: it is missing, damaged, or of other prompts.
    """
    return read_by_prompt(path, prompts, _task, "the tasks that were sampled")


def _task(prompt: Prompt, row: dict[str, list]) -> Task:
    task = Task(prompt, row["completions"], row["completion_tokens"], row["models"])
    task.scores = row.get("scores", [])
    if len({len(task.texts), len(task.tokens), len(task.models)}) > 1:
        raise ValueError(f"the answers to prompt {prompt.id} are incomplete")
    return task


def _counts(session: Session, stage: str, settings: Asking, prompts: int) -> dict[str, list[int]]:
    """Completions per model and prompt: K is drawn per prompt, and shared as `shares` says.

    Of what does not divide, each prompt draws who gets it.
    """
    rng = random.Random(session.seed(stage, "k"))
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
    session: Session, stage: str, name: str, prompts: Sequence[Prompt], found: Completions
) -> list[float]:
    """The reward model's score of each answer, in the order of the answers."""
    spec = reward_spec(session.config, session.need("reward_model"), session.need(name))
    session.fleet.reward.load(spec).result()
    scored = session.fleet.reward.score_batch(found.batch, session.asked(prompts)).result()
    if failures := told(scored):
        raise RewardError(
            f"{len(failures)} of {len(scored.failures)} answers got no score: {failures[0]}",
            where=stage, fix="correct the reward, or let no reward model score the answers",
        )  # fmt: skip
    by_id = dict(zip(scored.ids.tolist(), scored.values.tolist(), strict=True))
    return [by_id[int(i)] for i in found.batch.ids]


def _add(
    session: Session,
    tasks: Sequence[Task],
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
                left_out[EMPTY] += 1
            elif text in task.texts:
                left_out[REPEATED] += 1
            else:
                task.texts.append(text)
                task.tokens.append([int(i) for i in tokens])
                task.models.append(name)
                task.scores += scores[at : at + 1]
            at += 1


def _rows(tasks: Iterable[Task]) -> Iterable[dict[str, object]]:
    for task in tasks:
        row: dict[str, object] = {
            "id": task.prompt.id,
            **asked_fields(task.prompt.context),
            "completions": task.texts,
            "completion_tokens": task.tokens,
            "models": task.models,
        }
        yield row | ({"scores": task.scores} if task.scores else {})
