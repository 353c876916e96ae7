"""The models of a finished run in the pocket world, as their users load them.

`python -m benchmarks.published_models RUN`: each of base, sft, ppo and ppo_ptx answers the held-out
prompts of the evaluation by AutoTokenizer and `generate`, by the completions and by the chat
endpoint of `python -m orchestrator.serve`. Printed are the gold scores beside those of the run's
summary.json, and whether the tokens of every prompt are those of training. The answers are other
samples than the run's, so the scores differ by chance: `apart` is the difference in standard
errors, and 1.96 of them is the limit of a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import first_line
from workers.data.records import Prompt
from workers.pocket.source import PocketSource

MODELS = ("base", "sft", "ppo", "ppo_ptx")
_BATCH = 64
_START_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What one way of asking gave: a text a prompt, and the tokens that it made of the prompt."""

    texts: list[str]
    prompts: list[list[int]]


def by_generate(folder: Path, prompts: Sequence[Prompt], _source: PocketSource) -> Answered:
    """AutoTokenizer and `generate`, with what the folder itself says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    texts: list[str] = []
    for first in range(0, len(prompts), _BATCH):
        asked = [prompt.text for prompt in prompts[first : first + _BATCH]]
        inputs = tokenizer(asked, return_tensors="pt", padding=True)
        answers = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    return Answered(texts, [tokenizer(prompt.text)["input_ids"] for prompt in prompts])


def by_completions(url: str, prompts: Sequence[Prompt], _source: PocketSource) -> Answered:
    """The server's `/v1/completions`, with the prompt as text."""
    return _ask(url, "completions", [{"prompt": prompt.text} for prompt in prompts])


def by_chat(url: str, prompts: Sequence[Prompt], source: PocketSource) -> Answered:
    """The server's `/v1/chat/completions`, with the question as the user's turn."""
    asked = [source.question(prompt).text for prompt in prompts]
    turns = [[{"role": "user", "content": text}] for text in asked]
    return _ask(url, "chat/completions", [{"messages": each} for each in turns])


def _ask(url: str, path: str, bodies: list[dict[str, Any]]) -> Answered:
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:

        def one(number: int) -> tuple[str, list[int]]:
            body = {"model": "served", "seed": number, "return_token_ids": True, **bodies[number]}
            answer = client.post(f"/v1/{path}", json=body).raise_for_status().json()
            choice = answer["choices"][0]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            ids = answer.get("prompt_token_ids") or choice.get("prompt_token_ids")
            return text or "", ids

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(one, range(len(bodies))))
    return Answered([text for text, _ in found], [ids for _, ids in found])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of this folder, ready; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "orchestrator.serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*line, "--name", "served"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        try:
            httpx.get(f"{url}/v1/models", trust_env=False)
        except httpx.HTTPError:
            time.sleep(0.5)
            continue
        return
    raise TimeoutError(f"no server within {_START_SECONDS:g} s")


def measure(run: Path, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """A row for each model and way."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    world = config["data"]["pocket"]
    source = PocketSource(world["seed"], world["label_noise"], world["tie_width"])
    prompts = source.prompts("heldout", 0, count or config["evaluate"]["prompts"])
    table = json.loads((run / "summary.json").read_text())["evaluation"]["models"]
    rows: list[dict[str, Any]] = []
    for name in names:
        folder = run / "checkpoints" / name
        ways = {"generate": by_generate(folder, prompts, source)}
        with served(folder) as url:
            ways["completions"] = by_completions(url, prompts, source)
            ways["chat"] = by_chat(url, prompts, source)
        for way, answered in ways.items():
            golds = source.gold(prompts, answered.texts)
            assert golds is not None, "the pocket world knows the answers"
            scores = np.array([gold.score for gold in golds])
            wanted = [list(prompt.tokens) for prompt in prompts]
            apart = scores.mean() - table[name]["gold_mean"]
            error = scores.std(ddof=1) * math.sqrt(2 / len(scores))  # of two such samples
            rows.append(
                {
                    "model": name,
                    "way": way,
                    "gold": float(scores.mean()),
                    "table": table[name]["gold_mean"],
                    "apart": float(apart / error),
                    "tokens equal": answered.prompts == wanted,
                    "prompts": len(prompts),
                }
            )
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    return rows


def main() -> int:
    """0 where every prompt has its tokens and every score lies within three standard errors."""
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("run", type=Path, help="folder of a finished run of experiment=pocket")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--prompts", type=int, default=0, help="0 = as many as the run's own table")
    options = parser.parse_args()
    rows = measure(options.run, options.models, options.prompts)
    return int(not all(row["tokens equal"] and abs(row["apart"]) < 3.0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
