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
    "stage": "The stage, or variant of a stage.",
    "steps": "Optimizer steps of the stage.",
    "training loss, end": "Mean training loss of the last 20 steps.",
    "held out, first": "Loss on held-out data at the first measurement.",
    "held out, last": "Loss on held-out data at the last measurement.",
    "unit": "Unit of the losses.",
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
    "total time": "From the start of the command to its end.",
}
_PREFIXES = {
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
