"""Recognise demonstrations, prompts and documents by the names of the fields of a row.

"prompt", "completion" and "text" are bare text and stay unchanged. Every other shape implies who
speaks, and becomes a dialogue: a list of messages, but also a question and its answer, or an
instruction with its input and output. Rankings are in `workers.data.recognise.rankings_by_fields`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from workers.data.formats.line import Line
from workers.data.recognise.suggestions import columns_to_set
from workers.data.rows.dialogues import (
    checked_context,
    checked_reply,
    parse_dialogue,
    split_reply,
    turns_of,
    until_user,
)
from workers.data.rows.examples import (
    Context,
    Demonstration,
    Dialogue,
    Document,
    Message,
    PromptExample,
)
from workers.data.rows.fields import (
    DIALOGUES,
    INPUTS,
    REPLIES,
    REPLIES_TO,
    SYSTEMS,
    ambiguous,
    first_of,
    misspelt,
    only_of,
    user_of,
)
from workers.data.rows.history import earlier_turns
from workers.data.rows.unusable import Unusable

ACCEPTED = {
    "demonstrations": "messages | conversations | prompt + completion | "
    "question (+ input) + answer | instruction (+ input) + output | instruction + instances",
    "comparisons": "chosen + rejected, both whole dialogues | prompt + chosen + rejected | "
    "prompt + completions + ranks or scores (or better) | rows of one prompt with completion + "
    "score or rank (question, instruction or messages may replace prompt)",
    "prompts": "prompt | question | instruction (+ input) | turns | messages | conversations",
    "pretraining": "text",
}
# What a row of a kind is called, and the key of its files.
_CALLED = {
    "demonstrations": ("demonstration", "demonstrations", "data.files.demonstrations"),
    "comparisons": ("ranking", "rankings", "data.files.rankings"),
    "prompts": ("prompt", "prompts", "data.files.prompts"),
    "pretraining": ("text", "texts to pretrain on", "data.files.pretraining"),
}
OTHER_PROMPT = "its prompt differs from its dialogue"


def demonstrations(line: Line, source: str) -> Iterator[Demonstration]:
    """The demonstrations of a row: one, or one per instance.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If the shape is accepted but the row cannot be used.
    """
    user = user_of(line)
    for context, reply in _replies(line):
        yield Demonstration(context, reply.content, line.where, user, source, reply.trained)


def prompts(line: Line, source: str) -> Iterator[PromptExample]:
    """The prompts of a row: one, or one per instance.

    Raises:
        DataLineError: If the row has none of the accepted shapes.
        Unusable: If the shape is accepted but the row cannot be used.
    """
    user = user_of(line)
    if first_of(line, DIALOGUES):
        context = until_user(whole_dialogue(line))
        yield PromptExample(context, line.where, user, source)
    elif "turns" in line.fields and not asking(line):
        turns = line.texts("turns")
        if not turns:
            line.fail('"turns" is an empty list')
        yield PromptExample(_asked(line, turns[0]), line.where, user, source)
    elif "instances" in line.fields and "instruction" in line.fields:
        for instance in _instances(line):
            yield PromptExample(_instructed(line, instance), line.where, user, source)
    else:
        yield PromptExample(context_of(line, "prompts"), line.where, user, source)


def documents(line: Line, source: str) -> Iterator[Document]:
    """The document of a row.

    Raises:
        DataLineError: If the row holds no text.
        Unusable: If the text is empty.
    """
    if "text" not in line.fields:
        unknown(line, "pretraining")
    text = line.text("text")
    if not text.strip():
        raise Unusable("empty text")
    yield Document(text, line.where, user_of(line), source)


def whole_dialogue(line: Line) -> Dialogue:
    """The dialogue of a row, which must contain the prompt of the row, if it has one.

    Raises:
        DataLineError: If two dialogues differ, or one does not parse.
        Unusable: If the dialogue does not contain the prompt.
    """
    own = parse_dialogue(line, only_of(line, DIALOGUES))
    first = next((i for i, turn in enumerate(own) if turn.role != "system"), len(own))
    dialogue = with_system(line, (*own[:first], *earlier_turns(line), *own[first:]))
    check_prompt(line, dialogue)
    return dialogue


def check_prompt(line: Line, dialogue: Dialogue) -> None:
    """Refuse a row whose prompt is not in its dialogue.

    The prompt may be any user turn, or all turns up to a reply.

    Raises:
        DataLineError: If the prompt is neither text nor a list of messages.
        Unusable: If the dialogue does not contain it.
    """
    name = asking(line)
    if not name or "instances" in line.fields:
        return
    asked = line.parsed(line.field(name))
    said = [turn for turn in dialogue if turn.role != "system"]
    if isinstance(asked, list | dict):
        before = [turn for turn in parse_dialogue(line, name) if turn.role != "system"]
        if said[: len(before)] != before:
            raise Unusable(OTHER_PROMPT)
        return
    text = line.text(name).strip()
    with_input = _with_input(text, line).strip()
    users = [turn.content.strip() for turn in said if turn.role == "user"]
    if text in users or with_input in users or not text:
        return
    # a prompt that holds all user turns in order, with any text between them
    place = 0
    for turn in users:
        place = text.find(turn, place)
        if place < 0:
            raise Unusable(OTHER_PROMPT)
        place += len(turn)


def context_of(line: Line, kind: str) -> Context:
    """The context before the reply, from the prompt fields.

    Raises:
        DataLineError: If there is no prompt field, or several.
        Unusable: If the prompt is empty.
    """
    name = asking(line)
    if not name:
        for null in REPLIES_TO:
            if null in line.nulls:
                line.fail(f'"{null}" must be a string, not null (found {line.found()})')
        unknown(line, kind)
    if name == "instruction":
        return _instructed(line, line)
    if name == "question":
        return _asked(line, _with_input(line.text("question"), line))
    if isinstance(line.parsed(line.field("prompt")), list | dict):
        dialogue = (*earlier_turns(line), *parse_dialogue(line, "prompt"))
        return until_user(with_system(line, dialogue))
    text = line.text("prompt")
    if all(isinstance(line.fields.get(name, ""), str) for name in INPUTS):
        text = _with_input(text, line)
    if first_of(line, SYSTEMS) or earlier_turns(line):
        return _asked(line, text)
    if not text.strip():
        raise Unusable("empty prompt")
    return text


def asking(line: Line) -> str:
    """The name of the prompt field; "" = none.

    Raises:
        DataLineError: If there are several.
    """
    found = [name for name in REPLIES_TO if name in line.fields]
    if len(found) > 1:
        ambiguous(line, found)
    return found[0] if found else ""


def only_turn(line: Line, value: object, name: str) -> Message:
    """A reply that is written as a list of one turn of the assistant, or as that turn.

    Raises:
        DataLineError: If it is not a dialogue.
        Unusable: If it is not exactly one assistant turn.
    """
    turns = turns_of(line, value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Unusable("the reply is more than one assistant turn")
    return turns[0]


def with_system(line: Line, dialogue: Dialogue) -> Dialogue:
    """A dialogue with the system turn of its row put first, unless it already has one."""
    name = only_of(line, SYSTEMS)
    text = line.text(name) if name else ""
    if not text.strip() or any(turn.role == "system" for turn in dialogue):
        return dialogue
    return (Message("system", text), *dialogue)


def unknown(line: Line, kind: str) -> NoReturn:
    """Refuse a row that has none of the accepted shapes of a kind."""
    columns = columns_to_set(line)
    advice = f"set columns {columns}" if columns else "name the columns by data.columns"
    fix = f"accepted shapes: {ACCEPTED[kind]}; or {advice}"
    if (other := _kind_of_row(line)) not in ("", kind):
        _, rows, key = _CALLED[other]
        fix = f"rows with these fields are {rows}: give the file as {key}; {fix}"
    elif meant := misspelt(line):
        fix = f"did you mean {meant}? {fix}"
    line.fail(f"no {_CALLED[kind][0]} in this row, whose fields are {line.found()}", fix=fix)


def _kind_of_row(line: Line) -> str:
    """The kind whose rows usually have fields of these names; "" = none."""
    asks = first_of(line, tuple(REPLIES_TO))
    if {"chosen", "rejected"} <= line.fields.keys() or "completions" in line.fields:
        return "comparisons"
    if first_of(line, DIALOGUES) or (asks and first_of(line, REPLIES_TO[asks])):
        return "demonstrations"
    if asks:
        return "prompts"
    return "pretraining" if "text" in line.fields else ""


def _replies(line: Line) -> Iterator[tuple[Context, Message]]:
    if first_of(line, DIALOGUES):
        yield _end_of_dialogue(line)
    elif "instances" in line.fields and "instruction" in line.fields:
        for instance in _instances(line):
            reply = Message("assistant", checked_reply(instance.text("output")))
            yield _instructed(line, instance), reply
    else:
        context = context_of(line, "demonstrations")
        name = _only_reply(line, REPLIES_TO[asking(line)])
        if name not in line.fields and _kind_of_row(line) == "comparisons":
            unknown(line, "demonstrations")
        reply = line.parsed(line.field(name))
        if isinstance(reply, list | dict):
            turn = only_turn(line, reply, name)
        else:
            turn = Message("assistant", line.checked_text(line.field(name), name))
        checked_reply(turn.content)
        yield context, turn


def _end_of_dialogue(line: Line) -> tuple[Dialogue, Message]:
    """The turns before the reply, and the reply: the last turn, or a separate field."""
    dialogue = whole_dialogue(line)
    replies = [name for name in REPLIES if name in line.fields]
    if dialogue[-1].role == "user" and len(replies) == 1:
        dialogue = (*dialogue, Message("assistant", line.text(replies[0])))
    context, _ = split_reply(dialogue)
    return context, dialogue[-1]


def _asked(line: Line, text: str) -> Dialogue:
    turns = (*earlier_turns(line), Message("user", text))
    if not text.strip():
        raise Unusable("empty prompt")
    return checked_context(with_system(line, turns))


def _instructed(line: Line, holder: Line) -> Dialogue:
    """The instruction of the row with the input of the row or of one instance."""
    return _asked(line, _with_input(line.text("instruction"), holder))


def _with_input(text: str, holder: Line) -> str:
    name = only_of(holder, INPUTS)
    given = holder.text(name) if name else ""
    return f"{text}\n\n{given}" if given.strip() and given != text else text


def _instances(line: Line) -> Iterator[Line]:
    instances = line.list("instances")
    if not instances:
        line.fail('"instances" is an empty list')
    for i, item in enumerate(instances):
        if item is None:
            continue
        if not isinstance(item, dict):
            line.fail(f'"instances[{i}]" must be an object')
        yield Line(item, line.where)


def _only_reply(line: Line, names: tuple[str, ...]) -> str:
    found = [name for name in names if name in line.fields]
    if len(found) > 1:
        ambiguous(line, found)
    return found[0] if found else names[0]
