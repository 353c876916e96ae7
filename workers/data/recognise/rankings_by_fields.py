"""Recognise rankings of completions by the names of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from workers.data.formats.line import Line
from workers.data.recognise.shapes import (
    OTHER_PROMPT,
    asking,
    check_prompt,
    context_of,
    only_turn,
    unknown,
    whole_dialogue,
    with_system,
)
from workers.data.recognise.suggestions import columns_to_set
from workers.data.rows.dialogues import (
    begins_late,
    checked_reply,
    is_dialogue,
    parse_dialogue,
    split_reply,
    turns_of,
    until_user,
)
from workers.data.rows.examples import Comparison, Context, Dialogue, Message
from workers.data.rows.fields import ANNOTATORS, DIALOGUES, first_of, user_of
from workers.data.rows.unusable import Unusable

NO_LABEL = "no label"
TIED = "every completion ties"


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How one annotator ranked completions; None = not ranked."""

    annotator: str
    ranks: tuple[int | None, ...]
    likert: tuple[int, ...] = ()  # quality of each completion, 1 to 7; () = not rated


def comparisons(line: Line, source: str) -> Iterator[Comparison]:
    """The comparisons of a row: one per annotator.

    A ranking in which every completion ties is not trained, but it counts in the agreement of
    annotators: it is yielded if an annotator is named.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If the shape is accepted but the row cannot be used.
    """
    if "completions" in line.fields:
        context, completions = _completions(line)
        verdicts = _verdicts(line, completions)
        sampled = _sampled(line, len(completions))
    elif "chosen" in line.fields or "rejected" in line.fields:
        for name in ("chosen", "rejected"):
            line.field(name)
        context, completions = _pair(line)
        verdicts, sampled = [_Verdict(_annotator(line), (1, 2))], ()
    else:
        unknown(line, "comparisons")
    user = user_of(line)
    made = 0
    for verdict in verdicts:
        both = list(zip(completions, verdict.ranks, strict=True))
        ranked = [(c, r) for c, r in both if r and c]
        if len(ranked) < 2:
            continue
        made += 1
        texts, ranks = tuple(c for c, _ in ranked), _without_gaps([r for _, r in ranked])
        if len(set(ranks)) == 1 and not verdict.annotator:
            raise Unusable(TIED)
        if len(set(ranked)) > len(set(texts)):
            raise Unusable("equal completions ranked apart")
        tokens = tuple(t for t, (c, r) in zip(sampled, both, strict=False) if r and c)
        likert = tuple(v for v, (c, r) in zip(verdict.likert, both, strict=False) if r and c)
        yield Comparison(
            context, texts, ranks, line.where, user, source, verdict.annotator, tokens, likert
        )
    if not made:
        raise Unusable(NO_LABEL)


def is_tied(ranks: Sequence[int]) -> bool:
    """Whether every completion of a ranking ties."""
    return len(set(ranks)) == 1


def _completions(line: Line) -> tuple[Context, list[str | None]]:
    """The context, and the completions; null completions keep their places."""
    values = line.list("completions")
    if sum(value is not None for value in values) < 2:
        line.fail('"completions" needs at least two entries')
    whole = [value for value in values if _is_whole(line, value)]
    if whole and not asking(line) and not first_of(line, DIALOGUES):
        if len(whole) < sum(value is not None for value in values):
            line.fail('"completions" must all be whole dialogues, or none')
        ends = [
            split_reply(with_system(line, turns_of(line, value, f"completions[{i}]")))
            if value is not None
            else None
            for i, value in enumerate(values)
        ]
        contexts = [end[0] for end in ends if end]
        if any(context != contexts[0] for context in contexts):
            raise Unusable("dialogues differ before the last reply")
        return contexts[0], [end[1] if end else None for end in ends]
    if first_of(line, DIALOGUES):
        context: Context = until_user(whole_dialogue(line))
    else:
        context = context_of(line, "comparisons")
    return context, [_completion(line, value, i) for i, value in enumerate(values)]


def _is_whole(line: Line, value: object) -> bool:
    value = line.parsed(value)
    return (isinstance(value, list) and len(value) > 1) or (
        isinstance(value, str) and value.startswith("\n\nHuman:")
    )


def _completion(line: Line, value: object, i: int) -> str | None:
    if value is None:
        return None
    name = f"completions[{i}]"
    parsed = line.parsed(value)
    if isinstance(parsed, list) or (isinstance(parsed, dict) and {"role", "from"} & parsed.keys()):
        return checked_reply(only_turn(line, parsed, name).content)
    if isinstance(parsed, dict):
        line.fail(
            f'"{name}" must be a string, not an object',
            fix=f"set columns {columns_to_set(line) or 'completions=COLUMN.*.KEY'}",
        )
    return checked_reply(line.checked_text(value, name))


def _verdicts(line: Line, completions: list[str | None]) -> list[_Verdict]:
    """One verdict per ranking: "ranks" and "scores" hold one ranking, or a list of them."""
    name = first_of(line, ("ranks", "scores"))
    if not name:
        line.fail(
            f'neither "ranks" nor "scores" beside "completions" (found {line.found()})',
            fix="say which column ranks them: ranks=COLUMN (1 is best), scores=COLUMN (more is "
            f"better) or better=COLUMN (a label){_such_as(line)}",
        )
    values = line.list(name)
    count = len(completions)
    if not any(isinstance(value, list) for value in values):
        likert = _likert(line, "likert", line.fields.get("likert"), count)
        return [_Verdict(_annotator(line), _ranks(line, name, values, count), likert)]
    annotators = _annotators(line, len(values))
    return [
        _Verdict(annotator, _ranks(line, f"{name}[{i}]", value, count))
        for i, (annotator, value) in enumerate(zip(annotators, values, strict=True))
        if value is not None
    ]


def _likert(line: Line, name: str, values: object, count: int) -> tuple[int, ...]:
    """The quality of each completion from 1 to 7; () where the row has none."""
    values = line.parsed(values)
    if values is None:
        return ()
    line.used.add(name)
    listed = values if isinstance(values, list) else []
    ratings = tuple(v for v in listed if type(v) is int and 1 <= v <= 7)
    if not len(ratings) == len(listed) == count:
        line.fail(f'"{name}" must hold a whole number from 1 to 7 for each of {count} completions')
    return ratings


def _sampled(line: Line, count: int) -> tuple[tuple[int, ...], ...]:
    """The token ids of each completion as sampled; () where the row has none."""
    name = "completion_tokens"
    if name not in line.fields:
        return ()
    rows = line.list(name)
    if len(rows) != count:
        line.fail(f'"{name}" has {len(rows)} entries for {count} completions')
    return tuple(_ids(line, row, f"{name}[{i}]") for i, row in enumerate(rows))


def _ids(line: Line, row: object, name: str) -> tuple[int, ...]:
    row = line.parsed(row)
    if not isinstance(row, list) or not all(type(i) is int and 0 <= i < 2**31 for i in row):
        line.fail(f'"{name}" must be a list of token ids')
    return tuple(row)


def _such_as(line: Line) -> str:
    columns = "" if line.columns else columns_to_set(line)
    return f", such as: set columns {columns}" if columns else ""


def _ranks(line: Line, name: str, values: object, count: int) -> tuple[int | None, ...]:
    """One rank per completion, 1 = best; None where there is none."""
    if not isinstance(values, list):
        line.fail(f'"{name}" must be a list, as the others are')
    if len(values) != count:
        line.fail(f'"{name}" has {len(values)} entries for {count} completions')
    if name.startswith("ranks"):
        return tuple(line.optional_rank(value, f"{name}[{i}]") for i, value in enumerate(values))
    scores = [line.optional_score(value, f"{name}[{i}]") for i, value in enumerate(values)]
    distinct = sorted({score for score in scores if score is not None}, reverse=True)
    place = {score: i for i, score in enumerate(distinct, 1)}
    return tuple(None if score is None else place[score] for score in scores)


def _without_gaps(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks renumbered from 1 without gaps; only their order counts."""
    place = {rank: i for i, rank in enumerate(sorted(set(ranks)), 1)}
    return tuple(place[rank] for rank in ranks)


def _annotator(line: Line) -> str:
    name = first_of(line, ANNOTATORS)
    if name and isinstance(line.fields[name], list):
        line.fail(f'"{name}" is a list, and there is one ranking')
    return line.name(name) if name else ""


def _annotators(line: Line, count: int) -> list[str]:
    """The annotator of each of several rankings; numbered where none is named."""
    name = first_of(line, ANNOTATORS)
    if not name:
        return [f"annotator {i}" for i in range(1, count + 1)]
    values = line.list(name)
    if len(values) != count:
        line.fail(f'"{name}" has {len(values)} entries for {count} rankings')
    return [
        f"annotator {i}" if value is None else line.checked_name(value, f"{name}[{i - 1}]")
        for i, value in enumerate(values, 1)
    ]


def _pair(line: Line) -> tuple[Context, list[str | None]]:
    names = ("chosen", "rejected")
    if not (asking(line) or first_of(line, DIALOGUES)):
        late = {name: line.fields[name] for name in names if begins_late(line.fields[name])}
        whole = {name: f"\n\n{str(text).lstrip()}" for name, text in late.items()}
        line = replace(line, fields={**line.fields, **whole})
    values = [line.parsed(line.field(name)) for name in names]
    whole = [is_dialogue(value) for value in values]
    if whole[0] != whole[1]:
        line.fail('"chosen" and "rejected" must both be dialogues, or both be text')
    asks = asking(line) or first_of(line, DIALOGUES)
    if whole[0] and not (asks and all(_goes_on(value) for value in values)):
        return _pair_of_dialogues(line, asks)
    if not asks:
        unknown(line, "comparisons")
    return _asked(line), [checked_reply(line.text(name)) for name in names]


def _goes_on(value: object) -> bool:
    """Whether a text continues the prompt of another field instead of repeating it."""
    return isinstance(value, str) and not value.startswith("\n\nHuman:")


def _asked(line: Line) -> Context:
    if first_of(line, DIALOGUES):
        return until_user(whole_dialogue(line))
    return context_of(line, "comparisons")


def _pair_of_dialogues(line: Line, asks: str) -> tuple[Context, list[str | None]]:
    dialogues: list[Dialogue] = [parse_dialogue(line, name) for name in ("chosen", "rejected")]
    if asks and all(dialogue[0].role == "assistant" for dialogue in dialogues):
        # replies alone, as messages; the prompt is in a separate field
        asked = _asked(line)
        before = (Message("user", asked),) if isinstance(asked, str) else asked
        dialogues = [(*before, *dialogue) for dialogue in dialogues]
    else:
        dialogues = [with_system(line, dialogue) for dialogue in dialogues]
        if asks:
            _check_repeated(line, dialogues)
    (chosen, best), (rejected, worst) = (split_reply(dialogue) for dialogue in dialogues)
    if chosen != rejected:
        raise Unusable("dialogues differ before the last reply")
    return chosen, [best, worst]


def _check_repeated(line: Line, dialogues: list[Dialogue]) -> None:
    """Refuse dialogues that do not contain the prompt of another field of the row."""
    name = asking(line)
    text = line.fields.get(name) if name else None
    begins = isinstance(text, str) and text.lstrip().startswith(("Human:", "Assistant:"))
    if begins and isinstance(line.fields["chosen"], str):
        for each in ("chosen", "rejected"):
            if not str(line.fields[each]).lstrip().startswith(str(text).strip()):
                raise Unusable(OTHER_PROMPT)
    elif name:
        for dialogue in dialogues:
            check_prompt(line, dialogue)
    else:
        before = [turn for turn in _asked(line) if isinstance(turn, Message)]
        asked = [turn for turn in before if turn.role != "system"]
        for dialogue in dialogues:
            if [turn for turn in dialogue if turn.role != "system"][: len(asked)] != asked:
                raise Unusable(OTHER_PROMPT)
