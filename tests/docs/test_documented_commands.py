"""Every command that a page shows is read by the program that it calls."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_readers import READERS, read
from documented import READ_ELSEWHERE, ROOT, Command, blocks, commands, commands_of

COMMANDS = commands()
# A line of a page's own example -> the file that its commands name.
_SAVED_AS = {
    "\nESTIMATOR = ": "my_estimators.py", "\nLOSS = ": "my_losses.py",
    "\nLABELER = ": "my_labelers.py", "def label(prompts": "my_labels.py",
    "\nexperiment: short\n": "mine/experiment/short.yaml",
}  # fmt: skip


def _readable(command: Command) -> bool:
    words = command.words()
    return bool(words) and Path(words[0]).name in READERS


def test_no_command_is_left_without_a_reader() -> None:
    assert [str(each) for each in COMMANDS if not _readable(each)] == []
    assert len(COMMANDS) > 90
    for page, test in READ_ELSEWHERE.items():
        assert page in (ROOT / test).read_text().replace('" / "', "/")


@pytest.fixture
def where_the_pages_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with what the pages' own examples put there; their modules are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for language in ("yaml", "python"):
        for _, block in blocks(language):
            if name := _file_of(block):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(block)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def _file_of(block: str) -> str | None:
    """The file that a block is saved as: its first line says so, or what it defines."""
    if named := re.match(r"# ([\w/]+\.py)\b", block):
        return named[1]
    return next((file for line, file in _SAVED_AS.items() if line in block), None)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_understood(
    command: Command, where_the_pages_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(command, monkeypatch)


@pytest.mark.parametrize(
    "text",
    ["python -m orchestrator.run +experiment=poket", "python -m orchestrator.runs2 x y z",
     "python -m orchestrator.run +experiment=pocket algoritm=grpo",
     "python -m orchestrator.run +experiment=pocket stages=[ppo,sft]",
     "rehearsal keys --serach kl", "rehearsal rnu +experiment=pocket", "make dmeo",
     "python -m pytest tests/unti", "python -m benchmarks.chaos --prat faults",
     "uv pip install 'rehearsal[cup]'"],
)  # fmt: skip
def test_a_misspelt_word_is_not(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, SystemExit)):
        read(Command("a page", text, is_span=False), monkeypatch)


def test_spans_and_blocks_of_a_page_are_found() -> None:
    found = commands_of("README.md")
    assert "make demo   # set up, then run the whole recipe in the pocket world" in {
        each.text for each in found if not each.is_span
    }
    assert "python -m orchestrator.watch RUN" in {each.text for each in found if each.is_span}


@pytest.mark.parametrize(("page", "block"), blocks("python"), ids=lambda each: each[:20])
def test_python_of_a_page_is_python(page: str, block: str) -> None:
    ast.parse(block, page)
