"""Tasks from files: sampled answers to rank, or the answers of models to compare."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.label.order import Scores, uncertainty
from orchestrator.label.records import FEWEST, MOST, Answer, Prompt, Task, dense
from workers.data.formats.jsonl_file import scan_jsonl
from workers.data.formats.line import Line, kind_of
from workers.data.rows.dialogues import parse_dialogue
from workers.data.rows.unusable import Unusable
from workers.errors import ConfigError, DataLineError, EmptyDatasetError

Order = Literal["file", "random", "uncertain"]
_MOST_CHARACTERS = 1_000_000  # of a text
_NO_ID = "give each line an id of its own, or none"


@dataclass(frozen=True, slots=True)
class Making:
    """How tasks are made of a file."""

    compare: tuple[str, ...] = ()  # models whose answers are compared; () = rank all answers
    baseline: str = ""  # compare: with this model only, as InstructGPT's evaluation does
    overlap: float = 0.0  # share of tasks that several labelers judge
    judgments: int = 2  # of each such task
    order: Order = "file"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    task: Task
    scores: Scores | None
    where: str


def read_tasks(path: str, making: Making, gold: str = "") -> list[Task]:
    """The tasks of a file, and those of known ranks, in the order in which they are shown.

    Args:
        path: JSON lines: `prompt` or `messages`, with `completions` (and optionally `models`,
            `completion_tokens`, `scores`), or for comparisons `answers` by model.
        making: How tasks are made.
        gold: A file of the first kind with `ranks`; "" = none.

    Raises:
        DataLineError: a line is not as described.
        EmptyDatasetError: there is no task.
        ConfigError: a compared model has no answer.
    """
    rows = list(_numbered(_rows(path, making), {}))
    if not rows:
        raise EmptyDatasetError("there is no task", where=path, fix="give a file with lines")
    names = {row.task.name: row.where for row in rows}
    known = list(_numbered(_rows(gold, Making(), gold=True), names)) if gold else []
    tasks = _overlapping(_prioritised(rows, making), making)
    return [
        replace(task, id=number)
        for number, task in enumerate((*tasks, *(row.task for row in known)), start=1)
    ]


def _rows(path: str, making: Making, *, gold: bool = False) -> Iterable[_Row]:
    for line in scan_jsonl(path):
        if isinstance(line, DataLineError):
            raise line
        line = line.without_nulls()
        try:
            prompt = _prompt(line)
        except Unusable as error:
            line.fail(f"the prompt cannot be shown: {error}")
        if making.compare:
            yield from _comparisons(line, prompt, making)
        else:
            yield _ranking(line, prompt, gold=gold)


def _numbered(rows: Iterable[_Row], taken: dict[str, str]) -> Iterable[_Row]:
    """The rows with a name each: their id, or the place in the file."""
    names = dict(taken)
    for row in rows:
        name = row.task.name or row.where.rpartition("/")[2]
        if name in names:
            raise DataLineError(f'the id "{name}" is also that of {names[name]}',
                                where=row.where, fix=_NO_ID)  # fmt: skip
        names[name] = row.where
        yield replace(row, task=replace(row.task, name=name))


def _prompt(line: Line) -> Prompt:
    if "messages" in line.fields:
        turns = parse_dialogue(line, "messages")
        shown: Prompt = [{"role": turn.role, "content": turn.content} for turn in turns]
        for turn in shown:
            _checked_size(line, turn["content"], "messages")
        return shown
    return _checked_size(line, line.text("prompt"), "prompt")


def _checked_size(line: Line, text: str, name: str) -> str:
    if len(text) > _MOST_CHARACTERS:
        line.fail(f'"{name}" has {len(text):,} characters, more than {_MOST_CHARACTERS:,}')
    return text


def _ranking(line: Line, prompt: Prompt, *, gold: bool) -> _Row:
    if "answers" in line.fields and "completions" not in line.fields:
        line.fail(
            'it holds "answers" by model, which are compared and not ranked',
            "say which models: --compare ppo,sft",
        )
    texts = line.texts("completions")
    if not FEWEST <= len(texts) <= MOST:
        line.fail(f'"completions" has {len(texts)} texts; a task has {FEWEST} to {MOST}')
    models = line.texts("models") if "models" in line.fields else [line.name("model")] * len(texts)
    tokens = _tokens(line, len(texts))
    _same_length(line, "models", models, texts)
    answers = tuple(
        Answer(_checked_size(line, text, f"completions[{i}]"), models[i], tokens[i])
        for i, text in enumerate(texts)
    )
    ranks = None
    if gold:
        given = [line.optional_rank(rank, f"ranks[{i}]") for i, rank in
                 enumerate(line.list("ranks"))]  # fmt: skip
        _same_length(line, "ranks", given, texts)
        ranks = dense([rank for rank in given if rank is not None])
        _same_length(line, "ranks", ranks, texts)
    name, source = line.name("id"), line.name("source")
    task = Task(0, "rank", name, prompt, answers, gold=ranks, source=source)
    return _Row(task, _scores(line, len(texts)), line.where)


def _comparisons(line: Line, prompt: Prompt, making: Making) -> Iterable[_Row]:
    """One task of all compared models, or one per model and the baseline."""
    answers = line.field("answers")
    if not isinstance(answers, dict):
        line.fail(f'"answers" must be an object of texts by model, not {kind_of(answers)}')
    if missing := [name for name in making.compare if name not in answers]:
        raise ConfigError(
            f"no answer of {missing[0]!r}; there are those of {', '.join(map(str, answers))}",
            where=line.where,
            fix="name models of the file: --compare A,B",
        )
    sets = [making.compare]
    if making.baseline:
        sets = [(m, making.baseline) for m in making.compare if m != making.baseline]
    given = line.fields.get("completion_tokens")
    tokens = given if isinstance(given, dict) else {}
    for models in sets:
        shown = tuple(
            Answer(
                _checked_size(line, line.checked_text(answers[m], f"answers.{m}"), f"answers.{m}"),
                m,
                _token_row(line, tokens[m], m) if m in tokens else None,
            )
            for m in models
        )
        name = line.name("id") or line.where.rpartition("/")[2]
        if len(sets) > 1:
            name = f"{name} {models[0]}"
        task = Task(0, "compare", name, prompt, shown, source=line.name("source"))
        yield _Row(task, None, line.where)


def _tokens(line: Line, count: int) -> list[tuple[int, ...] | None]:
    if "completion_tokens" not in line.fields:
        return [None] * count
    rows = line.list("completion_tokens")
    _same_length(line, "completion_tokens", rows, range(count))
    return [_token_row(line, row, str(i)) for i, row in enumerate(rows)]


def _token_row(line: Line, row: object, name: str) -> tuple[int, ...]:
    if not isinstance(row, list) or not all(type(i) is int and 0 <= i < 2**31 for i in row):
        line.fail(f'"completion_tokens" of {name} must be a list of token ids')
    return tuple(row)


def _scores(line: Line, count: int) -> Scores | None:
    if "scores" not in line.fields:
        return None
    given = line.list("scores")
    if any(isinstance(each, list) for each in given):
        members = [each if isinstance(each, list) else [each] for each in given]
        for i, member in enumerate(members):
            _same_length(line, f"scores[{i}]", member, range(count))
        return [_finite(line, member) for member in members]
    _same_length(line, "scores", given, range(count))
    return _finite(line, given)


def _finite(line: Line, scores: Sequence[object]) -> list[float]:
    found = [line.optional_score(score, "scores") for score in scores]
    if None in found:
        line.fail('"scores" holds null')
    return [score for score in found if score is not None]


def _same_length(line: Line, name: str, given: Sequence[object], of: Sequence[object]) -> None:
    if len(given) != len(of):
        line.fail(f'"{name}" has {len(given)} entries for {len(of)} answers')


def _prioritised(rows: Sequence[_Row], making: Making) -> list[Task]:
    """The tasks, with the priority that the chosen order gives them."""
    tasks = [row.task for row in rows]
    if making.order == "random":
        random.Random(f"order {making.seed}").shuffle(tasks)
    if making.order != "uncertain":
        return tasks
    found = []
    for row in rows:
        if row.scores is None:
            raise DataLineError(
                "without scores the order `uncertain` has no meaning",
                where=row.where,
                fix='give "scores" of a reward model (conf/experiment/collect.yaml writes them '
                "when model.checkpoints.reward_model is set), or use --order random",
            )
        found.append(replace(row.task, priority=uncertainty(row.scores)))
    return found


def _overlapping(tasks: Sequence[Task], making: Making) -> list[Task]:
    """The tasks, some of which need several judgments."""
    count = round(making.overlap * len(tasks))
    chosen = set(random.Random(f"overlap {making.seed}").sample(range(len(tasks)), count))
    return [
        replace(task, needed=making.judgments) if i in chosen else task
        for i, task in enumerate(tasks)
    ]
