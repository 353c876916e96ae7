"""Differences of gold scores between two models of pocket runs, with intervals.

`python -m benchmarks.gold_of_answers ppo_3 ppo_once RUN [RUN ...]` scores the evaluation's answers
(samples/answers.jsonl) of each run, usually one per seed, by the gold labeler. The interval of a
run is that of its prompts; the one over runs is Student's, whose unit of evidence is a run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.run_files.samples import read_answers
from workers.pocket.source import PocketSource

# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def differences(run: Path, model: str, over: str) -> list[float]:
    """Gold score of `model` less that of `over`, one number per prompt of the evaluation."""
    source = PocketSource(0, 0.0, 0.0)  # gold scores have no noise
    rows = read_answers(run / "samples" / "answers.jsonl")
    prompts = source.prompts("heldout", 0, len(rows))
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.prompt == prompt.context, "the run has another pocket world"
    scores = [
        [gold.score for gold in source.gold(prompts, [row.answers[name] for row in rows]) or ()]
        for name in (model, over)
    ]
    return [a - b for a, b in zip(*scores, strict=True)]


def interval(values: Sequence[float], factor: float) -> tuple[float, float, float]:
    """The mean of the values, and `factor` standard errors below and above it."""
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - factor * error, mean + factor * error


def main() -> None:
    """Print one line per run, and one of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("over")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    means: list[float] = []
    for run in options.runs:
        mean, low, high = interval(differences(run, options.model, options.over), 1.96)
        means.append(mean)
        _say(f"{run}: {options.model} - {options.over}", mean, low, high)
    if 2 <= len(means) <= len(_T) + 1:
        _say(f"{len(means)} runs", *interval(means, _T[len(means) - 2]))


def _say(what: str, mean: float, low: float, high: float) -> None:
    sys.stdout.write(f"{what}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]\n")


if __name__ == "__main__":
    main()
