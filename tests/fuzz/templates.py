"""Chat templates: damaged, unsuitable, endless, huge, and written to get out of their sandbox."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data_files import byte_tokenizer

from fuzz.frame import Case
from workers.data.files import FileSource
from workers.data.tokenize.data_sets import DataSet, Feeding, Rendering, SetKind

VALID = "it renders every reply whole and ends it by the end token, which each case checks"
NOTHING = "the sandbox answers with nothing"
END = "<|end|>"
DIALOGUES = [
    [("user", "Where is the pond?"), ("assistant", "Behind the mill.")],
    [("system", "Be brief."), ("user", "Where is the barn?"), ("assistant", "There.")],
    [("user", "Say final"), ("assistant", "final")],
    [("user", "Say it twice"), ("assistant", "  spaced  ")],
    [("user", "Why?"), ("assistant", "assistant")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("user", "One"), ("user", "Two"), ("assistant", "Three")],
]
REPLIES = {content.strip() for turns in DIALOGUES for role, content in turns if role != "user"}

BODIES = {
    "plain": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "channel": "{% for m in messages %}{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}(final){% else %}: {% endif %}{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
    "instruct": "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content | trim }} [/Q]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
}
ADDED = {
    "an undefined function": "{{ nothere(messages) }}",
    "an undefined filter": "{{ messages | nothere }}",
    "an undefined test": "{% if messages is nothere %}{% endif %}",
    "an unknown tag": "{% nothere %}",
    "an unclosed tag": "{% if messages",
    "an unclosed loop": "{% for m in messages %}",
    "an absent attribute of an absent one": "{{ messages[0].a.b.c }}",
    "a division by zero": "{{ 1 / 0 }}",
    "a sum of unlike things": "{{ 1 + 'a' }}",
    "a turn that is not there": "{{ messages[99]['content'] }}",
    "a refusal": "{{ raise_exception('never') }}",
    "a refusal without words": "{{ raise_exception('') }}",
    "a refusal by a number": "{{ raise_exception(3) }}",
    "a refusal in many lines": "{{ raise_exception('a\\nb' * 5000) }}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}ab{% endfor %}"
    "{% endfor %}",
    "a long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a macro that calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a macro that calls itself twice": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}"
    "{% endif %}{% endmacro %}{{ a(60) }}",
    "a text that doubles": "{% set n = namespace(t='ab') %}{% for i in range(99) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(t=[1]) %}{% for i in range(99) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}",
    "a text times a number": "{{ 'a' * 10 ** 11 }}",
    "a list times a number": "{{ [1] * 10 ** 10 }}",
    "a power of powers": "{{ 10 ** (10 ** 10) }}",
    "a product of powers": "{% set n = namespace(t=2) %}{% for i in range(99) %}"
    "{% set n.t = n.t * n.t %}{% endfor %}",
    "a wide format": "{{ '%99999999999d' % 1 }}",
    "a wide format by a star": "{{ '%*d' % (99999999999, 1) }}",
    "a wide format by a filter": "{{ '%99999999999d' | format(1) }}",
    "a wide format by a method": "{{ '{:>99999999999}'.format(1) }}",
    "a wide margin": "{{ 'a'.ljust(10 ** 11) }}",
    "a wide centre": "{{ 'a' | center(10 ** 11) }}",
    "a wide indent": "{{ 'a\\nb' | indent(10 ** 11) }}",
    "a class of a text": "{{ ''.__class__.__mro__ }}",
    "globals of a function": "{{ cycler.__init__.__globals__ }}",
    "a change of the messages": "{{ messages.append(3) }}",
    "a change of a message": "{{ messages[0].update(content='x') }}",
    "an import": "{% import 'os' as os %}",
    "an include": "{% include '/etc/passwd' %}",
    "a parent": "{% extends 'base' %}",
    "random words": "{{ lipsum() }}",
    "a random choice": "{{ [1, 2] | random }}",
    "a date of no format": "{{ strftime_now(3) }}",
    "a date of a wide format": "{{ strftime_now('%Y' * 10 ** 7) }}",
}
EMPTY = {
    "globals of a macro": "{% macro a() %}{% endmacro %}{{ a.__class__ }}",
    "globals of the date": "{{ strftime_now.__globals__ }}",
}
HARMLESS = {
    "a comment": "{# words #}",
    "the date": "{{ strftime_now('%d %b %Y') }}",
    "a name that is not set": "{{ tools }}{{ absent }}",
    "a bounded loop": "{% for i in range(9) %}.{% endfor %}",
    "braces": "{{ '{{' }}",
}
CHANGED = {
    "a reply in capitals": ("m['content']", "m['content'] | upper"),
    "a reply cut short": ("m['content']", "m['content'][:2]"),
    "a reply left out": ("{{ m['content'] }}", ""),
    "a reply backwards": ("m['content']", "m['content'][::-1]"),
    "a reply as a list": ("m['content']", "m['content'] | list"),
    "no end token": ("{{ eos_token }}", ""),
    "another end token": ("{{ eos_token }}", "</s>"),
    "an end token before the reply": ("{{ m['content'] }}", "{{ eos_token }}{{ m['content'] }}"),
    "another prompt than the turn has": ("assistant: ", "Answer: "),
    "messages of another name": ("in messages", "in conversation"),
}
FILES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_text(""),
    "spaces": lambda path: path.write_text(" \n" * 1000),
    "UTF-16": lambda path: path.write_bytes(BODIES["plain"].encode("utf-16")),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "NULs": lambda path: path.write_bytes(bytes(1000)),
    "two MiB": lambda path: path.write_text("a" * 2**21),
    "deep parentheses": lambda path: path.write_text("{{ " + "(" * 9999 + ")" * 9999 + " }}"),
    "deep loops": lambda path: path.write_text("{% if 1 %}" * 999 + "{% endif %}" * 999),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "no file": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path),
}


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """Cases in an order drawn from the seed: each kind of change first, then characters lost."""
    rng = random.Random(seed)
    checkpoint = str(byte_tokenizer(folder / "tokenizer"))
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(_row(turns)) + "\n" for turns in DIALOGUES))
    made = list(_made(rng))
    rng.shuffle(made)
    while len(made) < count:
        made.append(_damaged(rng))
    for number, (name, write, why) in enumerate(made[:count]):
        path = folder / f"{number}.jinja"
        write(path)
        train_on = rng.choice(("last", "all"))
        yield Case(f"{name}, {train_on}", partial(_run, checkpoint, data, path, train_on), why)


_Made = tuple[str, Callable[[Path], object], str]


def _made(rng: random.Random) -> Iterator[_Made]:
    for added, why in ((ADDED, ""), (EMPTY, NOTHING), (HARMLESS, VALID)):
        for what, text in added.items():
            name, body = rng.choice(sorted(BODIES.items()))
            whole = rng.choice((text + body, body + text)) if added is ADDED else text + body
            # what follows the end token is left out of training, so it may be anything valid
            yield f"{name} with {what}", partial(_write, whole), why
    for what, (old, new) in CHANGED.items():
        name, body = rng.choice([pair for pair in sorted(BODIES.items()) if old in pair[1]])
        yield f"{name} with {what}", partial(_write, body.replace(old, new)), ""
    for what, write in FILES.items():
        yield f"a file of {what}", write, ""


def _damaged(rng: random.Random) -> _Made:
    name, body = rng.choice(sorted(BODIES.items()))
    text = list(body)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        text[at : at + rng.randint(1, 4)] = rng.choice(("", "", "{", "}", "%", "'", "\\", "\x00"))
    return f"{name} damaged to {''.join(text)!r}", partial(_write, "".join(text)), VALID


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _row(turns: list[tuple[str, str]]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _run(checkpoint: str, data: Path, template: Path, train_on: str) -> None:
    rendering = Rendering(checkpoint, 4096, 512, chat_template=str(template), train_on=train_on)  # pyright: ignore[reportArgumentType]
    sets = [DataSet("demonstrations", SetKind.demonstrations, str(data))]
    source = FileSource(sets, rendering, Feeding(heldout_fraction=0.2))
    rows = source.demonstrations("train", 0, source.demonstration_count())
    for number in range(len(rows.tokens)):
        tokens, targets = rows.tokens.row(number), rows.targets.row(number)
        trained = source.tokenizer.decode(tokens[targets].tolist())
        *replies, rest = str(trained).split(END)
        assert not rest, f"trained without an end: {trained!r}"
        for reply in replies:
            assert any(each in reply for each in REPLIES), f"trained: {reply!r}"
