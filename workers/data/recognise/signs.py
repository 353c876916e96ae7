"""Signs that a row holds replies or verdicts under unknown field names.

Names are compared in lower case. No row is read by a guess: a sign causes an error that shows
the `columns` to set (`workers.data.recognise.suggestions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from workers.data.formats.line import Line
from workers.data.rows.fields import REPLIES

RANKED = ("chosen", "rejected", "completions", "ranks", "better")
LABELS = re.compile(r"winner|choice|prefer|better|label|best|verdict|selected|ranking")
SCORES = re.compile(
    r"(?:.*[_-])?(?:rank|score|rating|reward|helpfulness|correctness|quality|votes|upvotes)(?:[_-].*)?"
)
_REPLY = (
    *("target", "targets", "solution", "reply", "summary", "highlights", "best_answer"),
    *("chosen_response", "ground_truth", "canonical_solution", "response_text", "answers"),
    *("assistant", "model_output", "model_response", "assistant_response", "a", "tgt"),
)
_LISTS = re.compile(
    r"answers?|responses?|completions?|generations?|outputs?|repl(?:y|ies)|summar(?:y|ies)"
    r"|candidates?|samples"
)
_STEMS = re.compile(
    r".*(?:response|answer|human_ref|conversation|output|summary|completion|text|generation|reply"
    r"|candidate|chosen|story|solution).*"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TEXTS = ("text", "answer", "response", "completion", "output", "content", "summary", "body")
SIBLINGS = re.compile(r"(?P<stem>.*?)[ _-]?(?P<tag>[a-h]|[0-9]|j|k)")
_PAIRS = (("a", "b"), ("0", "1"), ("1", "2"), ("j", "k"))
_NOT_ANSWERS = re.compile(
    r"(?:.*[ _-])?(?:model|name|id|uuid|tokens?|source|url|score|rank|rating|type|lang\w*|turn)|is"
)
_BEST = {
    *("chosen", "accepted", "preferred", "winning", "winner", "win", "better", "best"),
    *("positive", "pos", "good", "correct", "right", "w", "yw"),
}
WORST = {
    *("rejected", "dispreferred", "unpreferred", "losing", "loser", "lose", "worse", "worst"),
    *("negative", "neg", "bad", "incorrect", "wrong", "l", "yl"),
}
_ONE = re.compile(r"(?:[a-z]+[ _-])?(?:[a-h]|\d)|first|second|left|right|tie", re.IGNORECASE)


def looks_ranked(line: Line) -> str:
    """Why a row seems to compare replies under unknown names; "" = it does not."""
    answers = compared(line)
    if not answers:
        return ""
    named = ", ".join(f'"{name}"' for name in answers.values())
    return f"{named} look like replies that are compared"


def looks_answered(line: Line) -> str:
    """The column that seems to hold a reply, also under unknown names; "" = none."""
    names = {
        path.rpartition(".")[2].lower(): path for path, value in texts_of(line) if _is_reply(value)
    }
    return next((names[name] for name in (*_REPLY, *REPLIES) if name in names), "")


def names_a_column(line: Line) -> str:
    """The reply field that holds the name of another column instead of a reply; "" = none."""
    if not _siblings(line):
        return ""
    fields = (name for name in ("chosen", "rejected") if name in line.fields)
    return next((name for name in fields if _is_label(line, line.fields[name])), "")


def scored_by(line: Line) -> str:
    """The first numeric column that seems to rate a reply; "" = none."""
    return next(
        (
            name
            for name, value in line.fields.items()
            if SCORES.fullmatch(name.lower()) and is_number(value) and not isinstance(value, bool)
        ),
        "",
    )


def contradicted_by(line: Line) -> tuple[str, str] | None:
    """The two score columns by which the rejected reply is better than the chosen one."""
    for name, value in line.fields.items():
        words = words_of(name)
        if "chosen" not in words or not SCORES.fullmatch(name.lower()) or is_rank_name(name):
            continue
        other = name.replace("chosen", "rejected").replace("Chosen", "Rejected")
        both = (value, line.fields.get(other))
        found = [float(str(e)) for e in both if is_number(e) and not isinstance(e, bool)]
        if len(found) == 2 and found[0] < found[1]:
            return name, other
    return None


def flattened(line: Line) -> Line:
    """A row with the fields of its objects added under dotted paths."""
    fields = dict(line.fields)
    for name, value in line.fields.items():
        if isinstance(value, Mapping) and not is_turn(value):
            fields |= {f"{name}.{key}": item for key, item in value.items()}
    return Line(fields, line.where, line.typed)


def texts_of(line: Line) -> Iterator[tuple[str, object]]:
    """Texts and lists with their paths, including those in objects, one level deep."""
    for name, value in line.fields.items():
        if isinstance(value, str | list):
            yield name, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if isinstance(item, str | list):
                    yield f"{name}.{key}", item


def compared(line: Line) -> dict[str, str]:
    """Fields that hold the compared replies, with their columns."""
    if siblings := _siblings(line):
        return siblings
    return _opposites(line) or _siblings(line, known=False) or _listed(line)


def _opposites(line: Line) -> dict[str, str]:
    """Two replies, or lists of them, whose names say which one is better."""
    paths: dict[str, str] = {}
    for name, value in line.fields.items():
        if _NOT_ANSWERS.fullmatch(name.lower()):
            continue
        if _is_reply(value):
            paths[name] = name
        elif isinstance(value, list) and value and isinstance(value[0], str):
            paths[name] = f"{name}.0"
    worst = [name for name in paths if words_of(name) & WORST]
    best = [name for name in paths if words_of(name) & _BEST and name not in worst]
    found = [(a, b) for a in best for b in worst if words_of(a) - _BEST == words_of(b) - WORST]
    found += [(best[0], worst[0])] if best and worst else []
    return {"chosen": paths[found[0][0]], "rejected": paths[found[0][1]]} if found else {}


def _siblings(line: Line, *, known: bool = True) -> dict[str, str]:
    """Replies whose names differ only in a last letter or number."""
    replies = [name for name, value in line.fields.items() if _is_reply(value)]
    lower = {name.lower(): name for name in replies}
    stems: dict[str, dict[str, str]] = {}
    for name, own in lower.items():
        found = SIBLINGS.fullmatch(name)
        if found and not _NOT_ANSWERS.fullmatch(found["stem"]):
            stems.setdefault(found["stem"], {})[found["tag"]] = own
    for stem, tags in stems.items():
        if not (_STEMS.fullmatch(stem) if known else _has_label(line)):
            continue
        for first, second in _PAIRS:
            if first in tags and second in tags:
                if first == "j":  # in data sets of answers with votes, j has more votes than k
                    return {"chosen": tags[first], "rejected": tags[second]}
                alike = [tags[tag] for tag in sorted(tags) if tag.isdigit() == first.isdigit()]
                return {"completions": ",".join(alike)}
    return {}


def _listed(line: Line) -> dict[str, str]:
    for name, given in line.fields.items():
        value = line.parsed(given)
        if _LISTS.fullmatch(name.lower()) and _holds_texts(value):
            return {"completions": ",".join(f"{name}.{key}" for key in value)}
        if not (isinstance(value, list) and _LISTS.fullmatch(name.lower())):
            continue
        entries = [each for each in value if each is not None]
        if len(entries) > 1 and all(isinstance(e, str) for e in entries):
            return {"completions": name}
        first = entries[0] if entries else None
        if isinstance(first, list) and len(entries) > 1 and [type(e) for e in first[:1]] == [str]:
            scored = {"scores": f"{name}.*.1"} if first[1:] and is_number(first[1]) else {}
            return {"completions": f"{name}.*.0", **scored}
        if isinstance(first, Mapping) and (text := text_key(first)):
            if is_turn(first):
                continue
            found = {"completions": f"{name}.*.{text}"}
            keys = [k for k, v in first.items() if isinstance(v, int | float)]
            if rank := next((k for k in keys if is_rank_name(k)), ""):
                found["ranks"] = f"{name}.*.{rank}"
            elif score := next((k for k in keys if SCORES.fullmatch(k.lower())), ""):
                found["scores"] = f"{name}.*.{score}"
            return found
    return {}


def _has_label(line: Line) -> bool:
    return any(is_label_name(name) for name in line.fields)


def is_rank_name(name: str) -> bool:
    """Whether a column of this name holds ranks, 1 = best."""
    words = words_of(name)
    return bool(words & {"rank", "ranks", "ranking"}) and not words & {"score", "scores"}


def is_label_name(name: str) -> bool:
    """Whether a column of this name may say which completion is better, or worse."""
    if name.lower() in ("chosen", "accepted"):
        return True
    return bool(LABELS.search(name.lower()) or words_of(name) & {*WORST, "win", "wins"} - {"l"})


def _is_label(line: Line, value: object) -> bool:
    """Whether a value is the name of a column or of a choice, not a reply."""
    return isinstance(value, str) and (
        bool(_ONE.fullmatch(value.strip()))
        or value.strip().lower() in {name.lower() for name in line.fields}
    )


def words_of(name: str) -> set[str]:
    """The words and numbers of the last part of a path."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(".")[2])
    return set(re.findall(r"[a-z]+|\d+", spaced.lower()))


def is_number(value: object) -> bool:
    """Whether a value is a number, or the text of one."""
    if isinstance(value, str):
        return bool(_NUMBER.fullmatch(value.strip()))
    return isinstance(value, int | float)


def _holds_texts(value: object) -> TypeGuard[Mapping[str, object]]:
    """Whether an object maps two or more names, such as models, to replies."""
    if not isinstance(value, Mapping) or len(value) < 2 or is_turn(value):
        return False
    return all(isinstance(each, str) for each in value.values())


def _is_reply(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list):
        return bool(value) and is_turn(value[0])
    return is_turn(value)


def is_turn(value: object) -> bool:
    """Whether a value looks like a message."""
    return isinstance(value, Mapping) and not {"role", "from"}.isdisjoint(value.keys())


def text_key(value: Mapping[str, object]) -> str:
    """The field of an object that holds its text; "" = none."""
    keys = [key for key in value if isinstance(value[key], str)]
    return next((k for k in (*_TEXTS, "full_text") if k in keys), "")
