"""How well does a small reward model from scratch order real human preferences?

Runs `python -m orchestrator.run` on 2,000 comparisons of HH (harmless): a model of a few
million random weights learns to write the chosen replies, then to rank. Beside it, a bag-of-words
logistic regression on the same training rows and the same held-out rows.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from benchmarks.common import DATA, ROOT, machine, make_model, require, write_result
from orchestrator import run
from orchestrator.recipe import make_source
from orchestrator.statistics import WinRate, preference
from workers.data.source import DataSource
from workers.messages import Ranking

SETTINGS = (
    "+experiment=small_reward_model",
    "stages=[sft,reward_model]",
    "data.pii=keep",  # every one of the 2,000 pairs
    "data.train_on=all",
    "data.heldout_fraction=0.13",
    "data.files.max_prompt_tokens=800",
    "data.files.max_completion_tokens=224",
    "data.sets.chosen.kind=demonstrations",
    "data.sets.chosen.columns.messages=chosen",
    "data.sets.pairs.kind=comparisons",
    "sft.steps=360",
    "sft.demonstrations_per_step=16",
    "sft.optimizer.learning_rate=2e-3",
    "reward_model.max_rankings=2000",
    "reward_model.epochs=1",
    "reward_model.prompts_per_step=16",
    "reward_model.optimizer.learning_rate=5e-4",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "hh_rlhf_harmless_test.jsonl.gz",
                        help='comparisons, {"chosen", "rejected"} dialogues')  # fmt: skip
    parser.add_argument("--hidden", type=int, default=192, help="width of the model")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of the BPE")
    parser.add_argument("--folder", type=Path, help="keep model and run here; default: nowhere")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of results")
    parser.add_argument("overrides", nargs="*", help="more key=value for the run")
    return parser.parse_args()


def overrides(args: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of the run."""
    return [
        *SETTINGS,
        f"model.checkpoints.base={folder / 'model'}",
        f"data.sets.chosen.path={args.data}",
        f"data.sets.pairs.path={args.data}",
        f"run.dir={folder / 'run'}",
        *args.overrides,
    ]


def train(command: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "orchestrator.run", *command], check=True)


def source_of(command: Sequence[str]) -> DataSource:
    """The very rows that the run reads."""
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        composed = compose("config", overrides=[run.may_add(c) for c in command])
    config = run.to_config(composed)
    return make_source(config, {"base": config.model.checkpoints.base})


def bag_of_words(
    train: Sequence[Ranking], heldout: Sequence[Ranking], source: DataSource
) -> WinRate:
    """Logistic regression on differences of word counts; its strength by 5-fold validation."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegressionCV

    better, worse = texts(train, source)
    counts = CountVectorizer(min_df=2).fit(better + worse)
    differences = counts.transform(better) - counts.transform(worse)
    signs = np.where(np.arange(len(train)) % 2 == 0, 1, -1)  # else there is one class alone
    # The shared prompt cancels out. No intercept: swapping a pair must swap the verdict.
    model = LogisticRegressionCV(
        Cs=np.logspace(-4, 1, 11), cv=5, fit_intercept=False, max_iter=5000, l1_ratios=(0,),
        use_legacy_attributes=False,
    )  # fmt: skip
    model.fit(differences.multiply(signs[:, None]).tocsr(), signs)
    better, worse = texts(heldout, source)
    verdicts = model.decision_function(counts.transform(better) - counts.transform(worse))
    return preference([1.0 if v > 0 else 0.5 if v == 0 else 0.0 for v in verdicts])


def texts(rankings: Sequence[Ranking], source: DataSource) -> tuple[list[str], list[str]]:
    """The better and the worse dialogue of each pair."""
    best = [source.detokenize(r.sequences.row(int(np.argmin(r.ranks)))) for r in rankings]
    worst = [source.detokenize(r.sequences.row(int(np.argmax(r.ranks)))) for r in rankings]
    return best, worst


def main() -> None:
    args = arguments()
    require(args.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        sizes = [f"--hidden-size={args.hidden}", f"--layers={args.layers}",
                 f"--heads={args.hidden // 32}", f"--vocabulary={args.vocabulary}"]  # fmt: skip
        make_model(folder / "model", args.data, sizes)
        command = overrides(args, folder)
        train(command)
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        source = source_of(command)
    ours, stages = summary["stages"]["reward_model"], summary["timing"]["stages"]
    rows, heldout = source.rankings("train"), source.rankings("heldout")
    assert rows is not None
    assert heldout is not None
    rows = rows[:2000]
    words = bag_of_words(rows, heldout, source)
    tokens = tokens_read(rows, metrics)
    found = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": machine(),
        "command": [part.replace(str(folder), "FOLDER") for part in command],
        "training_pairs": len(rows),
        "heldout_pairs": ours["heldout_pairs"],
        "reward_model": {
            "accuracy": ours["heldout_pair_accuracy"], "ci95": ours["heldout_pair_accuracy_ci95"],
        },
        "bag_of_words": {"accuracy": words.rate, "ci95": [words.low, words.high]},
        "minutes": {name: seconds / 60 for name, seconds in stages.items()},
        "reward_model_tokens_per_second": tokens / stages["reward_model"],
        "data": summary["data"],
    }  # fmt: skip
    path = write_result(args.out, "hh_reward_model", found)
    show("reward model", ours["heldout_pair_accuracy"], *ours["heldout_pair_accuracy_ci95"])
    show("bag of words", words.rate, words.low, words.high)
    print(f"{len(rows):,} training pairs, {ours['heldout_pairs']} held out; {path}")


def tokens_read(rows: Sequence[Ranking], metrics: Sequence[str]) -> float:
    """Tokens that the reward model was trained on, all passes together."""
    steps = sum('"reward_model/loss"' in line for line in metrics)
    each = sum(len(r.sequences.values) for r in rows)
    return each * steps / math.ceil(len(rows) / 16)


def show(name: str, rate: float, low: float, high: float) -> None:
    print(f"{name:<14} {100 * rate:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    main()
