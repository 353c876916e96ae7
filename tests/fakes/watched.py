"""Run folders for the live view: small ones, and ones with very many sequences."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import RolloutSample
from orchestrator.telemetry.metrics import MetricRecord
from orchestrator.watch.followed import Followed

WORDS = ("cat", "dog", "owl", "fox", "hen", "cow", "pig", "ram", "bee", "ant", "eel", "yak")


def folder_at(path: Path) -> RunFolder:
    """A run folder with its subfolders."""
    return RunFolder(path).create()


def sample(n: int, **other: object) -> RolloutSample:
    """Sequence n: prompt n modulo 3, version n // 3, score n."""
    fields: dict = {
        "stage": "ppo", "step": n // 3 + 1, "id": n, "prompt": f"Which is {n % 3}?",
        "response": f"It is a {WORDS[n % 12]}.", "score": float(n), "kl": n / 10, "finish": "stop",
        "policy_version": n // 3, "tokens": n + 1,
    }  # fmt: skip
    return RolloutSample(**(fields | other))


def write_samples(folder: RunFolder, samples: Iterable[RolloutSample]) -> None:
    """Append samples to samples/rollouts.jsonl."""
    with folder.rollouts.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in samples)


def write_metrics(folder: RunFolder, values: dict[str, list[float]], stage: str = "ppo") -> None:
    """Append metrics: one list of values by name, from step 1 on."""
    with folder.metrics.open("a", encoding="utf-8") as file:
        for name, all_ in values.items():
            for n, value in enumerate(all_, start=1):
                file.write(MetricRecord.make(stage, n, name, value).to_line())


def write_answers(folder: RunFolder, lines: Iterable[dict]) -> None:
    """Write samples/answers.jsonl."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder.samples / "answers.jsonl").write_text(text, encoding="utf-8")


def read(folder: RunFolder) -> Followed:
    """A folder, read to its end by hand."""
    followed = Followed(folder)
    while followed.look():
        pass
    return followed


def many(count: int, characters: int, seed: int = 0) -> Iterable[RolloutSample]:
    """Sequences of many prompts; texts of some number of characters, drops, and failed rewards."""
    rng = random.Random(seed)
    text = " ".join(rng.choice(WORDS).capitalize() for _ in range(4 * characters))
    for n in range(count):
        at = rng.randrange(len(text) - characters)
        dropped = "the reward model did not answer" if n % 50 == 0 else ""
        yield RolloutSample(
            "ppo", n // 256 + 1, n, f"Question {n // 8}: {text[at : at + 60]}?",
            f"{n} {text[at : at + characters]}", float("nan") if dropped else rng.gauss(0, 1),
            abs(rng.gauss(0, 2)), "length" if n % 10 == 0 else "stop", n // 256,
            rng.randrange(1, 400), dropped,
        )  # fmt: skip
