"""Answers and their revisions, and the files that keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.run_files.folder import write_text
from orchestrator.run_files.prompt_rows import read_by_prompt
from orchestrator.run_files.samples import asked_fields
from workers.data.records import Prompt


@dataclass(frozen=True, slots=True)
class Revision:
    """One round of critique and revision."""

    principle: str  # its name
    critique: str  # "" = the critic gives none
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer to a prompt, and what became of it."""

    prompt: Prompt
    answer: str
    revisions: tuple[Revision, ...] = field(default=())
    failed: str = ""  # why there are no further revisions; "" = nothing failed

    @property
    def text(self) -> str:
        """The newest text."""
        return self.revisions[-1].text if self.revisions else self.answer

    def revised(self, made: Revision | str) -> Draft:
        """With one more revision, or the reason why there is none."""
        if isinstance(made, str):
            return replace(self, failed=made)
        return replace(self, revisions=(*self.revisions, made))


def write_drafts(path: Path, drafts: Iterable[Draft]) -> None:
    """Write drafts, one JSON object per line."""
    write_text(path, "".join(json.dumps(_row(d), ensure_ascii=False) + "\n" for d in drafts))


def _row(draft: Draft) -> dict[str, object]:
    revisions = [
        {"principle": r.principle, "critique": r.critique, "text": r.text} for r in draft.revisions
    ]
    return {
        "id": draft.prompt.id,
        **asked_fields(draft.prompt.context),
        "answer": draft.answer,
        "revisions": revisions,
        "failed": draft.failed,
    }


def read_drafts(path: Path, prompts: Sequence[Prompt]) -> list[Draft]:
    """The drafts that `write_drafts` wrote.

    Args:
        path: The file.
        prompts: Those that were asked.

    Raises:
        BrokenCheckpointError: it is missing, damaged, or of other prompts.
    """
    return read_by_prompt(path, prompts, _draft, "the revisions")


def _draft(prompt: Prompt, row: Mapping[str, object]) -> Draft:
    answer, revisions, failed = row["answer"], row["revisions"], row["failed"]
    if not isinstance(answer, str) or not isinstance(failed, str):
        raise TypeError("no text")
    if not isinstance(revisions, list):
        raise TypeError("no list of revisions")
    made = tuple(Revision(**each) for each in revisions)
    if not all(isinstance(text, str) for r in made for text in (r.principle, r.critique, r.text)):
        raise TypeError("no text")
    return Draft(prompt, answer, made, failed)
