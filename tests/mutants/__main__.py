"""Mutants of the maths, the loop and the workers, and whether a test notices: `make mutants`.

Each mutant is one changed line. Its file is replaced as it is imported, in a fork of a process that
has imported torch before, so nothing is written to the repository. Results go to a file and are
not computed again: who was killed stays so while its file does not change, and who survived is
tried again once its tests change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from mutants import listed, targets
from mutants.operators import Mutant, mutants
from mutants.server import Child, start_tests

ROOT = Path(__file__).parents[2]
Results = dict[str, tuple[str, str]]  # key of a mutant -> outcome, digest of the tests


def main() -> int:
    options = _parser().parse_args()
    chosen = _chosen(options)
    known = _read(options.results)
    pending = [m for m in chosen if _outcome(m, known) is None]
    print(f"{len(chosen)} mutants, {len(chosen) - len(pending)} known", flush=True)
    if pending and not _passes(sorted({t for m in pending for t in targets.tests_of(m.path)})):
        print("a test fails without any mutant; repair it first. These tests are run:")
        print(*sorted({t for m in pending for t in targets.tests_of(m.path)}), sep="\n")
        return 2
    for mutant, outcome in _tried(pending, options):
        known[mutant.key] = outcome, _digest(mutant)
        line = {"key": mutant.key, "outcome": outcome, "tests": _digest(mutant)}
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{outcome:9} {mutant}", flush=True)
    return _report(chosen, known)


def _passes(tests: list[str]) -> bool:
    child = start_tests(ROOT, None, tests, 1800.0)
    while (outcome := child.outcome()) is None:
        time.sleep(0.1)
    return outcome == "survived"


def _tried(pending: list[Mutant], options: argparse.Namespace) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with its outcome, a few processes at a time, until the time is up."""
    limit = time.monotonic() + options.minutes * 60
    waiting, running = deque(pending), list[tuple[Mutant, Child]]()
    while running or (waiting and time.monotonic() < limit):
        while waiting and len(running) < options.processes and time.monotonic() < limit:
            mutant = waiting.popleft()
            tests = targets.tests_of(mutant.path)
            running.append((mutant, start_tests(ROOT, mutant, tests, options.seconds)))
        for entry in running[:]:
            if (outcome := entry[1].outcome()) is not None:
                running.remove(entry)
                yield entry[0], outcome
        time.sleep(0.02)


def _chosen(options: argparse.Namespace) -> list[Mutant]:
    """The list, then as many generated ones, spread over the files by their number of mutants."""
    chosen = listed.mutants_of(ROOT) if options.which in ("all", "listed") else []
    chosen = [m for m in chosen if options.only in str(m)]
    if options.which in ("all", "generated"):
        pool = [m for path in targets.FILES for m in mutants(ROOT, path)]
        random.Random(options.seed).shuffle(pool)  # before any is left out: the rest stays
        pool = [m for m in pool if options.only in str(m) and targets.reason(m) is None]
        chosen += pool[: options.count]
    return chosen


def _digest(mutant: Mutant) -> str:
    """Of the tests of a mutant."""
    digest = hashlib.sha256()
    for path in targets.tests_of(mutant.path):
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()[:16]


def _outcome(mutant: Mutant, known: Results) -> str | None:
    """What is known of a mutant: who survived is tried again once its tests have changed."""
    outcome, tests = known.get(mutant.key, ("", ""))
    if outcome in ("killed", "timeout") or (outcome and tests == _digest(mutant)):
        return outcome
    return None


def _read(path: Path) -> Results:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["key"]: (line["outcome"], line["tests"]) for line in lines}


def _report(chosen: list[Mutant], known: Results) -> int:
    for title, named in (("listed", True), ("generated", False)):
        found = [(m, _outcome(m, known)) for m in chosen if bool(m.name) == named]
        tried = [(m, outcome) for m, outcome in found if outcome is not None]
        if not tried:
            continue
        survivors = [(m, outcome) for m, outcome in tried if outcome not in ("killed", "timeout")]
        killed = len(tried) - len(survivors)
        print(f"\n{title}: {killed} of {len(tried)} killed ({100 * killed / len(tried):.1f} %)")
        for mutant, outcome in survivors:
            print(f"  {outcome}  {mutant}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--which", choices=("all", "listed", "generated"), default="all")
    parser.add_argument("--count", type=int, default=200, help="generated mutants")
    parser.add_argument("--seed", type=int, default=0, help="which of the generated ones")
    parser.add_argument("--only", default="", help="mutants whose line holds this text")
    parser.add_argument("--minutes", type=float, default=60.0, help="later ones are left out")
    parser.add_argument("--seconds", type=float, default=120.0, help="most for one mutant")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "outputs" / "mutants.jsonl", help="goes on from it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
