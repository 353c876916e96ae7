"""What the rows of the usual data sets say, recognised by the names of their fields.

"prompt", "completion" and "text" are bare text and used as it stands. Every other shape says who
speaks, and becomes a dialogue: a list of messages, but also a question and its answer, or an
instruction with its input and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from workers.data.dialogues import (
    Unusable,
    checked_context,
    checked_reply,
    is_dialogue,
    parse_dialogue,
    split_reply,
    until_user,
)
from workers.data.examples import (
    Comparison,
    Context,
    Demonstration,
    Dialogue,
    Document,
    Message,
    PromptExample,
)
from workers.data.jsonl import Line

ACCEPTED = {
    "demonstrations": "messages | conversations | prompt + completion | "
    "question (+ input) + answer | instruction (+ input) + output | instruction + instances",
    "comparisons": "chosen + rejected, both whole dialogues | prompt + chosen + rejected | "
    "prompt + completions + ranks or scores (question or instruction may stand for prompt)",
    "prompts": "prompt | question | instruction (+ input) | turns | messages | conversations",
    "pretraining": "text",
}
_DIALOGUES = ("messages", "conversations")
_INPUTS = ("input", "context")
_SYSTEMS = ("system", "system_prompt")
_USERS = ("user", "user_id")
_ANNOTATORS = ("annotator", "annotator_id", "worker", "worker_id")
# What may follow each kind of prompt; the first name is the one that messages speak of.
_REPLIES = {
    "prompt": ("completion", "response", "answer", "output"),
    "question": ("answer", "response", "completion", "output"),
    "instruction": ("output", "response", "answer", "completion"),
}


def demonstrations(line: Line, source: str) -> Iterator[Demonstration]:
    """The demonstrations of a row: one, or one an instance.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If it has, but cannot be used.
    """
    user = _about(line, _USERS)
    for context, reply in _replies(line):
        yield Demonstration(context, reply, line.where, user, source)


def comparisons(line: Line, source: str) -> Iterator[Comparison]:
    """The comparison of a row.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If it has, but cannot be used.
    """
    if "completions" in line.fields:
        context, completions, ranks = _ranked(line)
    elif "chosen" in line.fields and "rejected" in line.fields:
        context, completions = _pair(line)
        ranks = [1, 2]
    else:
        _unknown(line, "comparisons")
    if len(set(ranks)) == 1:
        raise Unusable("every completion ties")
    if len(set(zip(completions, ranks, strict=True))) > len(set(completions)):
        raise Unusable("equal completions ranked apart")
    users, annotators = _about(line, _USERS), _about(line, _ANNOTATORS)
    yield Comparison(
        context, tuple(completions), tuple(ranks), line.where, users, source, annotators
    )


def prompts(line: Line, source: str) -> Iterator[PromptExample]:
    """The prompts of a row: one, or one an instance.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If it has, but cannot be used.
    """
    user = _about(line, _USERS)
    dialogue = _first(line, _DIALOGUES)
    if dialogue:
        context = until_user(_with_system(line, parse_dialogue(line, dialogue)))
        yield PromptExample(context, line.where, user, source)
    elif "turns" in line.fields:
        turns = line.texts("turns")
        if not turns:
            line.fail('"turns" is an empty list')
        yield PromptExample(_asked(line, turns[0]), line.where, user, source)
    elif "instances" in line.fields and "instruction" in line.fields:
        for instance in _instances(line):
            yield PromptExample(_instructed(line, instance), line.where, user, source)
    else:
        yield PromptExample(_context(line, "prompts"), line.where, user, source)


def documents(line: Line, source: str) -> Iterator[Document]:
    """The document of a row.

    Raises:
        DataLineError: If the row holds no text.
        Unusable: If the text is empty.
    """
    if "text" not in line.fields:
        _unknown(line, "pretraining")
    text = line.text("text")
    if not text.strip():
        raise Unusable("empty text")
    yield Document(text, line.where, _about(line, _USERS), source)


def _replies(line: Line) -> Iterator[tuple[Context, str]]:
    dialogue = _first(line, _DIALOGUES)
    if dialogue:
        yield split_reply(_with_system(line, parse_dialogue(line, dialogue)))
    elif "instances" in line.fields and "instruction" in line.fields:
        for instance in _instances(line):
            yield _instructed(line, instance), checked_reply(instance.text("output"))
    else:
        context = _context(line, "demonstrations")
        name = _only_reply(line, _REPLIES[_asking(line)])
        reply = line.field(name)
        if isinstance(context, tuple) and isinstance(reply, list):
            reply = _only_turn(line, name)
        yield context, checked_reply(line.checked_text(reply, name))


def _context(line: Line, kind: str) -> Context:
    """What comes before the reply, by the fields that ask."""
    asking = _asking(line)
    if not asking:
        _unknown(line, kind)
    if asking == "instruction":
        return _instructed(line, line)
    if asking == "question":
        return _asked(line, _with_input(line.text("question"), line))
    if isinstance(line.fields["prompt"], list):
        return until_user(_with_system(line, parse_dialogue(line, "prompt")))
    text = line.text("prompt")
    if _first(line, _SYSTEMS):
        return _asked(line, text)
    if not text.strip():
        raise Unusable("empty prompt")
    return text


def _asking(line: Line) -> str:
    found = [name for name in _REPLIES if line.fields.get(name) is not None]
    if len(found) > 1:
        _ambiguous(line, found)
    return found[0] if found else next((name for name in _REPLIES if name in line.fields), "")


def _asked(line: Line, text: str) -> Dialogue:
    return checked_context(_with_system(line, (Message("user", text),)))


def _instructed(line: Line, holder: Line) -> Dialogue:
    """The instruction of the row with the input of the row or of one of its instances."""
    return _asked(line, _with_input(line.text("instruction"), holder))


def _with_input(text: str, holder: Line) -> str:
    name = _first(holder, _INPUTS)
    given = holder.text(name) if name else ""
    return f"{text}\n\n{given}" if given.strip() else text


def _instances(line: Line) -> Iterator[Line]:
    instances = line.list("instances")
    if not instances:
        line.fail('"instances" is an empty list')
    for i, item in enumerate(instances):
        if not isinstance(item, dict):
            line.fail(f'"instances[{i}]" must be an object')
        yield Line(item, line.where)


def _ranked(line: Line) -> tuple[Context, list[str], list[int]]:
    dialogue = _first(line, _DIALOGUES)
    if dialogue:
        context: Context = until_user(_with_system(line, parse_dialogue(line, dialogue)))
    else:
        context = _context(line, "comparisons")
    completions = [checked_reply(text) for text in line.texts("completions")]
    if len(completions) < 2:
        line.fail('"completions" needs at least two entries')
    return context, completions, _ranks(line, len(completions))


def _ranks(line: Line, count: int) -> list[int]:
    """Ranks without gaps, from 1 on: only their order counts, and any whole number may be given."""
    if "ranks" in line.fields:
        ranks = line.ranks("ranks", count)
        place = {rank: i for i, rank in enumerate(sorted(set(ranks)), 1)}
        return [place[rank] for rank in ranks]
    if "scores" not in line.fields:
        line.fail(f'neither "ranks" nor "scores" beside "completions" (found {line.found()})')
    scores = line.scores("scores", count)
    best_first = {score: i for i, score in enumerate(sorted(set(scores), reverse=True), 1)}
    return [best_first[score] for score in scores]


def _pair(line: Line) -> tuple[Context, list[str]]:
    names = ("chosen", "rejected")
    whole = [is_dialogue(line.fields[name]) for name in names]
    if whole[0] != whole[1]:
        line.fail('"chosen" and "rejected" must both be dialogues, or both be text')
    asking = _asking(line)
    as_text = isinstance(line.fields["chosen"], str)
    if whole[0] and not (asking and as_text and not all(_repeats(line, name) for name in names)):
        return _pair_of_dialogues(line, asking)
    if not asking:
        _unknown(line, "comparisons")
    return _context(line, "comparisons"), [checked_reply(line.text(name)) for name in names]


def _pair_of_dialogues(line: Line, asking: str) -> tuple[Context, list[str]]:
    dialogues = [parse_dialogue(line, name) for name in ("chosen", "rejected")]
    if asking and all(dialogue[0].role == "assistant" for dialogue in dialogues):
        # replies alone, as messages; what was asked stands in a field of its own
        asked = _context(line, "comparisons")
        before = (Message("user", asked),) if isinstance(asked, str) else asked
        dialogues = [(*before, *dialogue) for dialogue in dialogues]
    else:
        dialogues = [_with_system(line, dialogue) for dialogue in dialogues]
    (chosen, best), (rejected, worst) = (split_reply(dialogue) for dialogue in dialogues)
    if chosen != rejected:
        raise Unusable("dialogues differ before the last reply")
    return chosen, [best, worst]


def _repeats(line: Line, name: str) -> bool:
    """Whether a dialogue written as one text begins with what another field of the row asks."""
    asked = _context(line, "comparisons")
    turns = parse_dialogue(line, name)
    if isinstance(asked, tuple):
        before = tuple(turn for turn in asked if turn.role != "system")
    elif asked.lstrip().startswith(("Human:", "Assistant:")):
        return line.text(name).lstrip().startswith(asked.strip())
    else:
        before = (Message("user", asked.strip()),)
    return turns[: len(before)] == before


def _only_turn(line: Line, name: str) -> str:
    turns = parse_dialogue(line, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Unusable("the reply is more than one assistant turn")
    return turns[0].content


def _with_system(line: Line, dialogue: Dialogue) -> Dialogue:
    name = _first(line, _SYSTEMS)
    text = line.text(name) if name else ""
    if not text.strip() or any(turn.role == "system" for turn in dialogue):
        return dialogue
    return (Message("system", text), *dialogue)


def _only_reply(line: Line, names: tuple[str, ...]) -> str:
    found = [name for name in names if line.fields.get(name) is not None]
    if len(found) > 1:
        _ambiguous(line, found)
    if found:
        return found[0]
    # a null is refused by its name, and so is the absence of the usual one
    return next((name for name in names if name in line.fields), names[0])


def _first(line: Line, names: tuple[str, ...]) -> str:
    return next((name for name in names if line.fields.get(name) is not None), "")


def _about(line: Line, names: tuple[str, ...]) -> str:
    name = _first(line, names)
    return line.name(name) if name else ""


def _ambiguous(line: Line, names: list[str]) -> NoReturn:
    line.fail(
        f"several fields may be meant: {', '.join(names)}",
        mend="say which one by data.columns, such as prompt=" + names[0],
    )


def _unknown(line: Line, kind: str) -> NoReturn:
    line.fail(
        f"no {kind} in a row with the fields: found {line.found()}",
        mend=f"accepted shapes: {ACCEPTED[kind]}; or name the columns by data.columns",
    )
