"""Signs that a row holds more than the fields whose names are known, and what to set then.

Names are compared in lower case. Nothing here is read by a guess: a sign makes an error that shows
the `columns` to set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from workers.data.fields import DIALOGUES, REPLIES_TO
from workers.data.jsonl import Line

RANKED = ("chosen", "rejected", "completions", "ranks", "better")
_LABELS = re.compile(r"winner|choice|prefer|better|label|best|verdict|selected")
_SCORES = re.compile(
    r"(?:.*[_-])?(?:rank|score|rating|reward|helpfulness|correctness|quality|votes|upvotes)(?:[_-].*)?"
)
_ASKED = ("post", "query", "context", "history", "problem", "input", "title", "document", "article")
_REPLY = (
    *("target", "targets", "solution", "reply", "summary", "highlights", "best_answer"),
    *("chosen_response", "ground_truth", "canonical_solution", "response_text", "answers"),
)
_LISTS = re.compile(
    r"answers|responses|completions|generations|outputs|replies|summaries|candidates|samples"
)
_STEMS = re.compile(
    r".*(?:response|answer|human_ref|conversation|output|summary|completion|text|generation|reply"
    r"|candidate|chosen|story|solution).*"
)
_TEXTS = ("text", "answer", "response", "completion", "output", "content", "summary", "body")
_SIBLINGS = re.compile(r"(?P<stem>.+?)[ _-]?(?P<tag>a|b|[0-9]|j|k)")
_PAIRS = (("a", "b"), ("0", "1"), ("1", "2"), ("j", "k"))
_NOT_ANSWERS = re.compile(r"model|name|id|tokens?|source|score|rank|rating|type|is|lang.*|turn")
_BEST = re.compile(r"chosen|accepted|preferred|winning|better")
_WORST = re.compile(r"rejected|dispreferred|losing|worse")


def looks_ranked(line: Line) -> str:
    """Why a row seems to compare replies under names that are not known; "" = it does not."""
    answers = _answers(line)
    if not answers:
        return ""
    named = ", ".join(f'"{name}"' for name in answers.values())
    return f"{named} look like replies that are compared"


def looks_answered(line: Line) -> str:
    """The column that seems to hold a reply under a name that is not known; "" = none."""
    names = {name.lower(): name for name, value in line.fields.items() if _is_reply(value)}
    return next((names[name] for name in _REPLY if name in names), "")


def scored_by(line: Line) -> str:
    """The first column of a number that seems to say how good a reply is; "" = none."""
    return next(
        (
            name
            for name, value in line.fields.items()
            if _SCORES.fullmatch(name.lower())
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ),
        "",
    )


def columns_to_set(line: Line) -> str:
    """The mapping that a row seems to need, as options of `inspect --columns`; "" = none known."""
    answers = _answers(line)
    if not answers:
        return ""
    parts = [f"{_asking(line)}"] if _asking(line) else []
    parts += [f"{field}={path}" for field, path in answers.items()]
    if "completions" in answers:
        parts += _order(line, answers["completions"])
    return " ".join(parts)


def _asking(line: Line) -> str:
    for name in (*REPLIES_TO, *DIALOGUES):
        if name in line.fields:
            value = line.parsed(line.fields[name])
            if isinstance(value, Mapping) and (text := _text_key(value)):
                return f"{name}={name}.{text}"
            return f"{'messages' if name in DIALOGUES else name}={name}"
    for path, value in _texts(line):
        if path.rpartition(".")[2].lower() in _ASKED:
            return f"{'messages' if isinstance(value, list) else 'question'}={path}"
    return ""


def _texts(line: Line) -> Iterator[tuple[str, object]]:
    """Text and lists by their paths, one level deep."""
    for name, value in line.fields.items():
        if isinstance(value, str | list):
            yield name, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if isinstance(item, str):
                    yield f"{name}.{key}", item


def _answers(line: Line) -> dict[str, str]:
    """Fields that hold the compared replies, with their columns."""
    replies = [name for name, value in line.fields.items() if _is_reply(value)]
    lower = {name.lower(): name for name in replies}
    best = [n for n in replies if _BEST.search(n.lower()) and not _WORST.search(n.lower())]
    worst = [n for n in replies if _WORST.search(n.lower())]
    if best and worst:
        return {"chosen": best[0], "rejected": worst[0]}
    stems: dict[str, dict[str, str]] = {}
    for name, own in lower.items():
        found = _SIBLINGS.fullmatch(name)
        if found and not _NOT_ANSWERS.fullmatch(found["stem"]):
            stems.setdefault(found["stem"], {})[found["tag"]] = own
    for stem, tags in stems.items():
        if not (_STEMS.fullmatch(stem) or any(_LABELS.search(n.lower()) for n in line.fields)):
            continue
        for first, second in _PAIRS:
            if first in tags and second in tags:
                if first == "j":  # of questions and answers with votes: j has more of them
                    return {"chosen": tags[first], "rejected": tags[second]}
                more = [tags[t] for t in sorted(tags) if t.isdigit()] if first.isdigit() else []
                return {"completions": ",".join(more or [tags[first], tags[second]])}
    return _listed(line)


def _listed(line: Line) -> dict[str, str]:
    for name, given in line.fields.items():
        value = line.parsed(given)
        if not (isinstance(value, list) and _LISTS.fullmatch(name.lower())):
            continue
        entries = [each for each in value if each is not None]
        if name != "completions" and len(entries) > 1 and all(isinstance(e, str) for e in entries):
            return {"completions": name}
        first = entries[0] if entries else None
        if isinstance(first, Mapping) and (text := _text_key(first)):
            if _is_turn(first):
                continue
            found = {"completions": f"{name}.*.{text}"}
            keys = [k for k, v in first.items() if isinstance(v, int | float)]
            if rank := next((k for k in keys if "rank" in k.lower()), ""):
                found["ranks"] = f"{name}.*.{rank}"
            elif score := next((k for k in keys if _SCORES.fullmatch(k.lower())), ""):
                found["scores"] = f"{name}.*.{score}"
            return found
    return {}


def _order(line: Line, completions: str) -> list[str]:
    """How the row seems to say which completion is better."""
    if "human_ref_A" in completions.split(",") and "labels" in line.fields:
        return ["better.column=labels", "better.first=1", "better.second=0"]
    paths = completions.split(",")
    stems = {match["stem"]: path for path in paths if (match := _SIBLINGS.fullmatch(path.lower()))}
    tags = [path[-1] for path in paths] if stems and len(paths) > 1 else []
    for name in line.fields:
        stem = name[:-1]
        siblings = [stem + tag for tag in tags]
        known = stem.rstrip(" _-").lower()
        numbers = all(_is_number(line.fields.get(sibling)) for sibling in siblings)
        meant = _SCORES.fullmatch(known) or _LABELS.search(known)
        if tags and name == siblings[0] and numbers and meant:
            return [f"scores={','.join(siblings)}"]
    models = [n for n in line.fields if n.lower().startswith("winner_") and "tie" not in n.lower()]
    if len(models) == len(paths) > 1:
        return [f"scores={','.join(models)}"]
    label = next((n for n in line.fields if _LABELS.search(n.lower()) and n not in paths), "")
    return [f"better={label}"] if label else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_reply(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list):
        return bool(value) and _is_turn(value[0])
    return _is_turn(value)


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and not {"role", "from"}.isdisjoint(value.keys())


def _text_key(value: Mapping[str, object]) -> str:
    keys = [key for key in value if isinstance(value[key], str)]
    return next((k for k in (*_TEXTS, "full_text") if k in keys), "")
