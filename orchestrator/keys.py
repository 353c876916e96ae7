"""Every key of a run: `python -m orchestrator.keys [KEY...] [--search TEXT]`.

Without arguments all keys are printed, one per line, with type, range, default and purpose.
`--markdown` prints them as the page docs/keys.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator.command_line.key_help import EVERYTHING, NOTE, Key, all_keys, described
from orchestrator.command_line.keys_page import keys_page
from orchestrator.process.command_exit import exit_code, tell
from orchestrator.process.program import program
from workers.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.markdown:
        return exit_code(lambda: tell(keys_page()))
    return exit_code(lambda: tell(answer(options.key, options.search)))


def answer(words: Sequence[str], text: str = "") -> str:
    """The lines of the keys at or below `words` (none: of all), or of those that hold `text`.

    Raises:
        UnknownKeyError: There is no such key or section.
        ConfigError: No key holds the text, or both are asked for.
    """
    if not text:
        return described(words or [EVERYTHING])
    if words:
        raise ConfigError(
            f"both keys and --search {text} are given", where="--search", fix="give one of the two"
        )
    found = [key.line() for key in all_keys() if _holds(key, text)]
    if not found:
        raise ConfigError(
            f"no key, default or purpose holds {text!r}",
            where="--search",
            fix="search for one word, or a part of one; without arguments all keys are printed",
        )
    return "\n".join([*found, "", NOTE])


def _holds(key: Key, text: str) -> bool:
    """Whether every word of the text is in the key's line, in upper or lower case."""
    line = key.line().casefold()
    return all(word in line for word in text.casefold().split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.keys"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("key", nargs="*", metavar="KEY", help="a key or a section: algorithm.kl")
    parser.add_argument("--search", default="", metavar="TEXT", help="words in key or purpose")
    parser.add_argument("--markdown", action="store_true", help="all keys as a page")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
