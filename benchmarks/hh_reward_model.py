"""How well does a small reward model from scratch order real human preferences?

Runs `python -m orchestrator.run` on 2,000 comparisons of HH (harmless), each the last exchange of a
dialogue: a model of a few million random weights learns to write these exchanges, better and worse
alike (pretraining), then the better replies (SFT), and then to rank. Beside it, a bag-of-words
logistic regression on the same training rows and the same held-out rows. An eighth of the file, 290
pairs, tells models 6 points apart at best, so several folds are run, each from scratch, and pooled.
The settings were chosen on folds 0 to 2.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from benchmarks.common import DATA, RESULTS, first_line, machine, make_model, require, write_result
from orchestrator import run
from orchestrator.results.intervals import WinRate, preference
from orchestrator.session.sources import make_source
from workers.data.source import DataSource
from workers.records.training import Ranking

PAIRS = 2000
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
READING = (
    "+experiment=small_reward_model",
    "data.pii=keep",  # every pair
    "data.heldout_fraction=0.125",
    "data.files.max_prompt_tokens=800",
    "data.files.max_completion_tokens=224",
    "data.sets.pairs.kind=comparisons",
)
TRAINING = (
    "stages=[pretrain,sft,reward_model]",
    "data.sets.text.kind=pretraining",
    "data.sets.chosen.kind=demonstrations",
    "data.sets.chosen.columns.prompt=prompt",
    "data.sets.chosen.columns.completion=chosen",
    "pretrain.steps=750",  # 3 passes
    "pretrain.documents_per_step=16",
    "pretrain.optimizer.learning_rate=2e-3",
    "sft.steps=100",
    "sft.demonstrations_per_step=16",
    "sft.optimizer.learning_rate=5e-4",
    f"reward_model.max_rankings={PAIRS}",
    "reward_model.epochs=2",
    "reward_model.prompts_per_step=16",
    "reward_model.optimizer.learning_rate=2e-4",
    "reward_model.optimizer.weight_decay=0.1",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--data", type=Path, default=DATA / "hh_rlhf_harmless_test.jsonl.gz",
                        help='comparisons, {"chosen", "rejected"} dialogues')  # fmt: skip
    parser.add_argument("--hidden", type=int, default=192, help="width of the model")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the BPE")
    parser.add_argument("--folds", type=int, nargs="+", default=[3, 4, 5, 6], choices=range(8),
                        help="eighths of the file to hold out, one after another")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="keep model and run here; default: nowhere")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("overrides", nargs="*", help="more key=value for the run")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Fold:
    """What one eighth of the pairs, held out, says."""

    training_pairs: int
    reward_model: WinRate
    bag_of_words: WinRate
    minutes: dict[str, float]
    tokens_per_second: float  # of the reward model's stage, training


def overrides(args: argparse.Namespace, folder: Path, fold: int) -> list[str]:
    """The command line of one run."""
    return [
        *pairs_of(folder, fold),
        *TRAINING,
        f"data.sets.chosen.path={folder / 'pairs.jsonl'}",
        f"data.sets.text.path={folder / f'text-{fold}.jsonl'}",
        f"run.dir={folder / f'fold-{fold}'}",
        *args.overrides,
    ]


def pairs_of(folder: Path, fold: int) -> list[str]:
    """The comparisons of a run, and what they are read with."""
    return [
        *READING,
        f"model.checkpoints.initial={folder / 'model'}",
        f"data.heldout_fold={fold}",
        f"data.sets.pairs.path={folder / 'pairs.jsonl'}",
    ]


def write_pairs(data: Path, path: Path) -> None:
    """The last exchange of each dialogue: what was asked, and the two replies."""
    with gzip.open(data, "rt", encoding="utf-8") as rows, path.open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            asked, _, chosen = row["chosen"].rpartition(ASSISTANT)
            before, _, rejected = row["rejected"].rpartition(ASSISTANT)
            if asked == before:  # else the dialogues differ before the last reply
                prompt = HUMAN.strip() + asked.rpartition(HUMAN)[2] + ASSISTANT
                pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                file.write(json.dumps(pair) + "\n")


def write_text(path: Path, train: Sequence[Ranking], source: DataSource) -> None:
    """What the training pairs say, without saying which is better; nothing that is held out."""
    better, worse = texts(train, source)
    lines = [json.dumps({"text": text}) + "\n" for text in better + worse]
    path.write_text("".join(lines), encoding="utf-8")


def run_fold(args: argparse.Namespace, folder: Path, fold: int) -> Fold:
    """Train on one fold's 2,000 pairs, and measure on its held-out ones."""
    command = overrides(args, folder, fold)
    # The text to pretrain on is made of these very rows, so they are read before it is there.
    source = source_of([*pairs_of(folder, fold), f"model.checkpoints.sft={folder / 'model'}"])
    train, heldout = source.rankings("train"), source.rankings("heldout")
    assert train is not None
    assert heldout is not None
    train = train[:PAIRS]
    write_text(folder / f"text-{fold}.jsonl", train, source)
    subprocess.run([sys.executable, "-m", "orchestrator.run", *command], check=True)
    results = folder / f"fold-{fold}"
    summary = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    metrics = (results / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ours, stages = summary["stages"]["reward_model"], summary["timing"]["stages"]
    pairs = ours["heldout_pairs"]
    assert pairs == len(heldout)
    right = round(ours["heldout_pair_accuracy"] * pairs)
    return Fold(
        training_pairs=len(train),
        reward_model=preference([1.0] * right + [0.0] * (pairs - right)),
        bag_of_words=bag_of_words(train, heldout, source),
        minutes={name: seconds / 60 for name, seconds in stages.items()},
        tokens_per_second=tokens_read(train, metrics) / stages["reward_model"],
    )


def pooled(rates: Sequence[WinRate]) -> WinRate:
    """All folds as one: no pair is held out twice."""
    outcomes = [[1.0] * round(r.rate * r.n) + [0.0] * (r.n - round(r.rate * r.n)) for r in rates]
    return preference([each for fold in outcomes for each in fold])


def source_of(command: Sequence[str]) -> DataSource:
    """The very rows that the run reads."""
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        composed = compose("config", overrides=[run.may_add(c) for c in command])
    config = run.to_config(composed)
    return make_source(config, {"base": config.model.checkpoints.initial})


def bag_of_words(
    train: Sequence[Ranking], heldout: Sequence[Ranking], source: DataSource
) -> WinRate:
    """Logistic regression on differences of word counts; its strength by 5-fold validation."""
    from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
        CountVectorizer,
    )
    from sklearn.linear_model import (  # pyright: ignore[reportMissingImports]
        LogisticRegressionCV,
    )

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
        write_pairs(args.data, folder / "pairs.jsonl")
        folds = []
        for fold in args.folds:
            folds.append(run_fold(args, folder, fold))
            show(f"fold {fold}: reward model", folds[-1].reward_model)
            show(f"fold {fold}: bag of words", folds[-1].bag_of_words)
        command = overrides(args, folder, args.folds[0])
        command = [c.replace(str(folder), "FOLDER") for c in command]
    ours = pooled([fold.reward_model for fold in folds])
    words = pooled([fold.bag_of_words for fold in folds])
    found = {
        "question": first_line(__doc__),
        "machine": machine(),
        "command": command,
        "reward_model": asdict(ours),
        "bag_of_words": asdict(words),
        "folds": [{"fold": n, **asdict(f)} for n, f in zip(args.folds, folds, strict=True)],
    }
    path = write_result(args.out, "hh_reward_model", found)
    show("all: reward model", ours)
    show("all: bag of words", words)
    print(path)


def tokens_read(rows: Sequence[Ranking], metrics: Sequence[str]) -> float:
    """Tokens that the reward model was trained on, all passes together."""
    steps = sum('"reward_model/loss"' in line for line in metrics)
    each = sum(len(r.sequences.values) for r in rows)
    return each * steps / math.ceil(len(rows) / 16)


def show(name: str, rate: WinRate) -> None:
    low, high = 100 * rate.low, 100 * rate.high
    said = f"{name:<22} {100 * rate.rate:.1f} %  [{low:.1f}, {high:.1f}]  of {rate.n:,} pairs"
    print(said, flush=True)


if __name__ == "__main__":
    main()
