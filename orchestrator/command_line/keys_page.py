"""docs/keys.md: every key of a run in one table per section, made from the schema."""

from __future__ import annotations

import dataclasses
import itertools
from enum import Enum

from orchestrator.command_line.key_help import Key, all_keys, field_texts, shown_value
from orchestrator.command_line.key_types import type_words
from orchestrator.command_line.key_units import unit_of

_HEAD = """\
# Keys

Every key of a run, made from the schema by `rehearsal keys --markdown`. `key=value` on the command
line sets one; `rehearsal keys --search "kl target"` finds keys by words of their line, and
`rehearsal keys algorithm.kl` prints those of a section. The defaults are the schema's: groups and
experiments set others, and `--cfg job` prints what a command line composes.
"""
_COLUMNS = "| key | type | unit | range | default | what it is |\n|---|---|---|---|---|---|\n"


def keys_page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for section, keys in itertools.groupby(all_keys(), key=lambda key: _section(key.name)):
        parts.append(f"\n## {section}\n\n{_COLUMNS}{''.join(map(_row, keys))}")
    return "".join(parts)


def _section(name: str) -> str:
    """The heading under which a key stands: its first part."""
    if name.startswith("data.sets."):
        return "data.sets.NAME"
    first, dot, _ = name.partition(".")
    return first if dot else "the run"


def _row(key: Key) -> str:
    unit = unit_of(key.name, key.kind)
    limits = key.limits.short() if key.limits is not None else ""
    default = "must be given" if key.default is dataclasses.MISSING else _code(key.default)
    is_enum = isinstance(key.kind, type) and issubclass(key.kind, Enum)
    kind = "one of these" if is_enum else type_words(key.kind)
    text = _cell(key.text) + (_members(key.kind) if is_enum else "")
    return f"| `{key.name}` | {_cell(kind)} | {unit} | {limits} | {default} | {text} |\n"


def _members(kind: type[Enum]) -> str:
    texts = field_texts(kind)
    each = (f"`{m.value}`" + (f": {_cell(texts[m.name])}" if m.name in texts else "") for m in kind)
    return "".join(f"<br>{line}" for line in each)


def _code(value: object) -> str:
    return f"`{_cell(shown_value(value))}`"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor starts a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")
