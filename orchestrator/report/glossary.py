"""What every column and figure of the page means, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterable

_COLUMNS = {
    "model": "The model that answered: base before fine-tuning, SFT after it, then the policies.",
    "gold score": "Noise-free score of the pocket world's labeler, which no stage trains on; mean.",
    "reward": "Mean score by the reward that chose or trained the answers.",
    "KL to SFT, at most": "Upper bound of the best of n answers' KL to the SFT model, in nats.",
    "truthful": "Share of answers that state no wrong fact.",
    "rude": "Share of answers with a rude word.",
    "correct": "Share of answers that are exactly right.",
    "tokens": "Mean length of an answer, its end included; of a data set: all its tokens.",
    "web perplexity": "exp of the mean loss per token of held-out text: lower is better.",
    "cloze": "Share of facts that the model completes in pretraining style.",
    "quality of 7, by people": "Mean quality from 1 to 7 that people gave.",
    "accuracy": "Share of held-out pairs that the reward model orders as the labeler did.",
    "95 %": "95 % interval, with prompts as clusters.",
    "pairs": "Ordered pairs of answers to the same prompt; ties are left out.",
    "prompts": "Different prompts that they come from.",
    "round": "The policy of a round of labels, reward model and policy.",
    "accuracy before": "Held-out pairs of the round ordered as labeled by the reward model before.",
    "after": "The same pairs, by the reward model of the round.",
    "stage": "The stage, or variant of a stage.",
    "steps": "Optimizer steps of the stage.",
    "training loss, end": "Mean training loss of the last 20 steps.",
    "held out, first": "Loss on held-out data at the first measurement.",
    "held out, last": "Loss on held-out data at the last measurement.",
    "unit": "Unit of the losses.",
    "time": "Wall-clock time of the stage, of all processes of a resumed run together.",
    "KL at the end": "KL to the reference in nats per sequence, mean of the last four iterations.",
    "host memory": "Sum of the peaks of resident memory of the workers that the stage used.",
    "roles": "These workers' roles, with their share of the memory in GiB.",
    "role": "The role: a group of worker processes.",
    "busy, s": "Seconds of a PPO step at work, without transfers; mean over steps and workers.",
    "transfer, s": "Seconds of a PPO step fetching records and moving weights.",
    "waiting, s": "Seconds of a PPO step without a call.",
    "idle share": "Waiting as a share of the step.",
    "rank": "Number of the worker within its role.",
    "process": "Process id on its node.",
    "node": "Address of the machine that the worker ran on.",
    "device": "What its model computed on.",
    "set": "Name of the data set.",
    "kind": "What its rows are used as.",
    "weight": "Its share among the sets of the same kind; only ratios matter.",
    "rows": "Rows that were read.",
    "training": "Rows to train on.",
    "held out": "Rows that measure and do not train.",
    "cut": "Rows whose completion was truncated.",
    "left out": "Rows that are not used, by reason.",
    "response": "The whole answer; special tokens are left out, other invisible characters named.",
    "gold": "Noise-free score of this answer.",
    "score": "Score of the reward, before the KL penalty.",
    "KL": "log of policy / reference probability, summed over the answer, in nats.",
    "version": "Number of weight syncs before the answer was sampled.",
    "chosen by": "What chooses the best of n answers of the SFT model; the columns are n.",
    "KL of the best of": "KL of the best of n answers to the SFT model, in nats; columns are n.",
    "proxy": "A reward model that is optimised while the gold score is measured.",
    "rankings": "Rankings that it learned from.",
    "weights": "Its parameters.",
    "right": "Share of held-out pairs that it orders as the labeler did.",
    "best n": "The n whose gold score is highest.",
    "inside": "Bootstrap samples of prompts in which that is neither the first nor the last n.",
    "under gold": "How much more the best by the gold score itself reaches; 95 % interval.",
    "policy": "A policy that PPO trained against a proxy.",
    "KL coeff.": "Coefficient of its KL penalty.",
    "gold: first": "Gold score of held-out answers before the first update.",
    "highest": "The highest gold score while it learned.",
    "at KL": "KL to the SFT model at that point, in nats per answer.",
    "last": "Gold score after the last update.",
    "fit": "The proxy or policy whose gained gold score is fitted by a curve.",
    "alpha": "Gain per unit of distance at the start of the curve.",
    "beta": "How soon the curve bends down.",
    "peak d": "Distance, sqrt(KL), at which the curve is highest; 95 % bootstrap interval.",
    "R2": "Share of the variance that the curve explains.",
    "exact": "The same with the exact KL in place of log n - (n-1)/n.",
    "stop, length, abort": "How an answer ended: by itself, at the limit, or dropped unfinished.",
}  # fmt: skip
_FACTS = {
    "preferred by": "The judge that compared two answers.",
    "reward model, held-out pairs": "Held-out pairs ordered as the labeler did; 95 % interval.",
    "reward model, calibration error": "Mean distance of predicted and observed agreement.",
    "annotators agree": "Pairs on which two annotators agree; alpha is Krippendorff's.",
    "sequences": "Every generated sequence was trained on or dropped with a reason.",
    "dropped": "Sequences not trained on, by reason.",
    "mirror": "Copies of checkpoints to object storage.",
    "weight syncs": "Weights sent to the engines; the worst difference of log-probabilities.",
    "first optimizer step after": "From the start of the command to the first optimizer step.",
    "first PPO update after": "From the start of the command to the first PPO update.",
    "over-optimisation": "What the stage overoptimization sampled.",
    "distance of the peak over rankings": "How the peak moves with the data of the proxies.",
    "distance of the peak over parameters": "How the peak moves with the size of the proxies.",
    "alpha over rankings": "How the first gain moves with the data of the proxies.",
    "alpha over parameters": "How the first gain moves with the size of the proxies.",
    "beta over rankings": "How the bend moves with the data of the proxies.",
    "beta over parameters": "How the bend moves with the size of the proxies.",
    "total time": "From the start of the command to its end.",
}
_PREFIXES = {
    "answers of ": "Every answer sampled by the stage label is ranked or left out with a reason.",
    "preferred to ": "Share of held-out prompts on which this model's answer was preferred to the "
    "other's, with 95 % interval; a tie counts half.",
}
_OTHER = "A task and metric of lm-evaluation-harness, or a yes/no field that people answered."


def meaning(name: str) -> str:
    """What a column's heading or a fact's name stands for."""
    known = _COLUMNS.get(name) or _FACTS.get(name)
    if known is None:
        known = next((text for start, text in _PREFIXES.items() if name.startswith(start)), None)
    if known is None and name.endswith(", held-out pairs"):  # of a variant's reward model
        known = _FACTS["reward model, held-out pairs"]
    if known is None and name.startswith("reward model on"):
        known = "Part of the held-out pairs: a data source, or a number K of ranked answers."
    return known or _OTHER


def glossary(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, meaning) of each name once, in order."""
    return [(name, meaning(name)) for name in dict.fromkeys(names) if name]
