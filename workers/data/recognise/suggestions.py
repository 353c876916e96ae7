"""Suggest the `columns` to set for rows with unknown field names, for error messages."""

from __future__ import annotations

from collections.abc import Mapping

from workers.data.formats.line import Line
from workers.data.recognise.signs import (
    LABELS,
    SCORES,
    SIBLINGS,
    WORST,
    compared,
    is_label_name,
    is_number,
    is_rank_name,
    is_turn,
    looks_answered,
    scored_by,
    text_key,
    texts_of,
    words_of,
)
from workers.data.rows.fields import (
    ANNOTATORS,
    DIALOGUES,
    INPUTS,
    REPLIES_TO,
    SYSTEMS,
    USERS,
    first_of,
)

# Other names of fields that may hold the prompt, the likeliest first.
_ASKED = (
    *("query", "problem", "post", "body", "history", "context", "input", "document", "article"),
    *("title", "user_prompt", "user_input", "human", "q", "user", "source", "src"),
)
# Words in the name of a label column: the label names the worse completion.
_AGAINST = WORST | {"not", "less", "least"}


def columns_to_set(line: Line) -> str:
    """The mapping that a row seems to need, as options of `inspect --columns`; "" = none known."""
    answers = compared(line)
    if not answers:
        return ""
    paths = ",".join(answers.values()).split(",")
    whole = all(_is_whole(line, path) for path in paths)
    parts = [] if whole else [_asking(line, paths) or "prompt=COLUMN"]
    parts += [f"{field}={path}" for field, path in answers.items()]
    if "completions" in answers and not {"ranks", "scores"} & answers.keys():
        parts += _order(line, answers["completions"])
    return " ".join([*parts, *_besides(line, parts)])


def columns_of_reply(line: Line) -> str:
    """As `columns_to_set`, for a row with one reply under an unknown name."""
    reply = looks_answered(line)
    asks = _asking(line, [reply])
    if not (reply and asks):
        return ""
    field = "completion" if asks.startswith("prompt=") else "answer"
    parts = [asks, f"{field}={reply}"]
    if score := scored_by(line):
        parts.append(f"{'rank' if is_rank_name(score) else 'score'}={score}")
    return " ".join([*parts, *_besides(line, parts)])


def _besides(line: Line, parts: list[str]) -> list[str]:
    """Columns with known names, which must be mapped too once any other column is."""
    used = {part.partition("=")[2] for part in parts}
    groups = {"input": INPUTS, "system": SYSTEMS, "user": USERS, "annotator": ANNOTATORS}
    found = {field: first_of(line, names) for field, names in groups.items()}
    return [f"{field}={name}" for field, name in found.items() if name and name not in used]


def _asking(line: Line, taken: list[str]) -> str:
    for name in (*REPLIES_TO, *DIALOGUES):
        if name in line.fields:
            value = line.parsed(line.fields[name])
            if isinstance(value, Mapping) and (text := text_key(value)):
                return f"{name}={name}.{text}"
            return f"{'messages' if name in DIALOGUES else name}={name}"
    texts = {path: value for path, value in texts_of(line) if path not in taken}
    for path in texts:
        if (last := path.rpartition(".")[2].lower()) in REPLIES_TO:
            return f"{last}={path}"
    likely = {path.rpartition(".")[2].lower(): path for path in reversed(texts)}
    if path := next((likely[name] for name in _ASKED if name in likely), ""):
        return f"{'messages' if isinstance(texts[path], list) else 'question'}={path}"
    for path, value in texts.items():
        if isinstance(value, list) and value and is_turn(value[0]):
            return f"messages={path}"
    return "prompt=text" if "text" in texts else ""


def _order(line: Line, completions: str) -> list[str]:
    """The mapping of the columns that seem to say which completion is better."""
    if "human_ref_A" in completions.split(",") and "labels" in line.fields:
        return ["better.column=labels", "better.first=1", "better.second=0"]
    paths = completions.split(",")
    if numbers := _numbers_of(line, completions):
        return [f"{'ranks' if is_rank_name(numbers.partition('.')[0]) else 'scores'}={numbers}"]
    stems = {match["stem"]: path for path in paths if (match := SIBLINGS.fullmatch(path.lower()))}
    tags = [path[-1] for path in paths] if stems and len(paths) > 1 else []
    for name in line.fields:
        stem = name[:-1]
        siblings = [stem + tag for tag in tags]
        known = stem.rstrip(" _-").lower()
        numbers = all(is_number(line.fields.get(sibling)) for sibling in siblings)
        meant = SCORES.fullmatch(known) or LABELS.search(known)
        if tags and name == siblings[0] and numbers and meant:
            return [f"{'ranks' if is_rank_name(known) else 'scores'}={','.join(siblings)}"]
    models = [n for n in line.fields if n.lower().startswith("winner_") and "tie" not in n.lower()]
    if len(models) == len(paths) > 1:
        return [f"scores={','.join(models)}"]
    labels = [n for n in line.fields if is_label_name(n) and n not in paths]
    plain = [name for name in labels if not words_of(name) & _AGAINST]
    label = next(iter([*plain, *labels]), "COLUMN")
    alike = [name for name in plain if _letters(name) == _letters(label)]
    if len(alike) > 1:  # one per annotator
        return [f"better={','.join(alike)}"]
    return _meant(label, line.fields.get(label), paths)


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if not c.isdigit())


def _meant(label: str, value: object, paths: list[str]) -> list[str]:
    """How to interpret a column of labels, as far as its name implies it."""
    against = bool(words_of(label) & _AGAINST)
    ends = [path.rpartition(".")[2] for path in paths]
    tags = [end[-1:].lower() for end in ends]
    about = [i for i, tag in enumerate(tags) if tag in words_of(label)]
    if len(paths) != 2 or not (against or isinstance(value, bool)):
        return [f"better={label}"]
    if isinstance(value, bool):
        first, second = ("true", "false") if len(about) == 1 else ("LABEL", "LABEL")
        turned = against != (about == [1])
    else:
        text = str(value).lower()
        known = [names for names in (ends, tags) if text in [name.lower() for name in names]]
        first, second = known[0] if known else ("LABEL", "LABEL")
        turned = against
    first, second = (second, first) if turned else (first, second)
    return [f"better.column={label}", f"better.first={first}", f"better.second={second}"]


def _numbers_of(line: Line, completions: str) -> str:
    """The columns that hold one number for each completion of a list or object; "" = none."""
    paths = completions.split(",")
    holder = paths[0].partition(".")[0]
    held = line.parsed(line.fields.get(holder))
    for name, given in line.fields.items():
        value = line.parsed(given)
        meant = any(SCORES.fullmatch(each) for each in (name.lower(), name.lower().rstrip("s")))
        if name == holder or not (meant or is_label_name(name)):
            continue
        if isinstance(held, list) and isinstance(value, list) and len(value) == len(held) > 0:
            numbers = [each for each in value if is_number(each)]
            if len(numbers) == len(held):
                return name
        if isinstance(held, Mapping) and isinstance(value, Mapping) and held.keys() == value.keys():
            return ",".join(f"{name}.{path.partition('.')[2]}" for path in paths)
    return ""


def _is_whole(line: Line, path: str) -> bool:
    """Whether a column holds a whole dialogue, prompt included."""
    value = line.fields.get(path)
    return (isinstance(value, list) and len(value) > 1 and is_turn(value[0])) or (
        isinstance(value, str) and value.startswith("\n\nHuman:")
    )
