"""Registry of all metrics with their units, and the records in metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.run_files.damage import Damage, complaint, require_number, verified
from workers.errors import DataLineError

_ROLES = ("rollout", "reward", "reference", "policy", "critic", "environment")

# Phases of one PPO iteration, in data-flow order; reward, logprobs, reference and values overlap.
PPO_PHASES = (
    "generate",
    "reward",
    "logprobs",
    "reference",
    "values",
    "experience",
    "policy_update",
    "critic_update",
    "weight_sync",
    "record",
)


@dataclass(frozen=True, slots=True)
class Metric:
    """Unit and meaning of a metric. A timing differs between two runs of the same seed."""

    unit: str
    description: str
    timing: bool = False


def _optimizer(what: str) -> dict[str, Metric]:
    return {
        "grad_norm": Metric("1", f"L2 norm of the {what} gradient before clipping"),
        "learning_rate": Metric("1", f"learning rate of the {what}"),
    }


def _seconds(description: str) -> Metric:
    return Metric("s", description, timing=True)


def _role_time(role: str) -> dict[str, Metric]:
    """Metrics of a role's time since the previous step, mean over its workers."""
    return {
        f"busy_seconds/{role}": _seconds(f"{role} at work, transfers left out"),
        f"transfer_seconds/{role}": _seconds(f"{role} fetching records, moving weights"),
        f"waiting_seconds/{role}": _seconds(f"{role} without a call"),
        f"idle_share/{role}": Metric("s/s", f"share of the step that {role} waited", timing=True),
    }


_PRETRAIN = {
    "loss": Metric("nats/token", "next-token loss of the step's documents"),
    "validation_loss": Metric("nats/token", "the same loss on held-out documents"),
    "tokens_per_second": Metric("tokens/s", "counted tokens trained per second", timing=True),
    **_optimizer("model"),
}
_SFT = {
    "loss": Metric("nats/token", "next-token loss on response tokens of the step"),
    "validation_loss": Metric("nats/token", "the same loss on held-out demonstrations"),
    "heldout_score_mean": Metric("reward", "reward of answers to held-out prompts, mean"),
    "heldout_response_tokens_mean": Metric("tokens", "length of these answers, mean"),
    "heldout_eos_rate": Metric("fraction", "of these answers, those that ended by themselves"),
    "tokens_per_second": Metric("tokens/s", "counted tokens trained per second", timing=True),
    **_optimizer("model"),
}
_LABEL = {
    "answers": Metric("sequences", "answers that were sampled to be ranked"),
    "ranked": Metric("sequences", "of them, those in rankings"),
    "left_out": Metric("sequences", "of them, those that are not: empty, repeated, not ranked"),
    "rankings": Metric("rankings", "rankings to train on"),
    "heldout_rankings": Metric("rankings", "rankings held out"),
    "pairs": Metric("pairs", "pairs of the rankings to train on: ordered, or with a probability"),
    "accuracy_before": Metric(
        "fraction", "held-out pairs that the reward model orders right before it learns from them"
    ),
    "accuracy_before_low": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "accuracy_before_high": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "questions": Metric("questions", "asked of a model about pairs, both orders"),
    "unanswered": Metric("questions", "of them, those without an answer"),
    "cycles": Metric("prompts", "whose preferences contradict each other"),
    "bias": Metric("fraction", "of the questions whose answer the position decides; > 0: first"),
    "bias_low": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "bias_high": Metric("fraction", "its 95 % interval, clustered by prompt"),
}
_CONSTITUTION = {
    "answers": Metric("sequences", "answers that were sampled to be revised"),
    "revised": Metric("sequences", "of them, those with every revision"),
    "left_out": Metric("sequences", "of them, those without: empty, failed, too long"),
    "demonstrations": Metric("sequences", "revisions to train on"),
    "heldout_demonstrations": Metric("sequences", "revisions held out"),
    "changed": Metric("sequences", "revised answers whose last revision is another text"),
    **{
        f"rude_{when}{end}": Metric("fraction", f"{what} {when} revision")
        for when in ("before", "after")
        for end, what in (
            ("", "rude answers"), ("_low", "95 % interval of rude answers"),
            ("_high", "95 % interval of rude answers"),
        )
    },
}  # fmt: skip
_REWARD_MODEL = {
    "loss": Metric("nats/pair", "ranking loss: mean over pairs of a ranking, then rankings"),
    "pair_accuracy": Metric("fraction", "pairs ordered as the labeler did, this step"),
    "heldout_loss": Metric("nats/pair", "ranking loss on held-out rankings"),
    "heldout_pair_accuracy": Metric("fraction", "pairs ordered as the labeler did, held out"),
    "heldout_pair_accuracy_low": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "heldout_pair_accuracy_high": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "heldout_pairs": Metric("pairs", "ordered pairs held out"),
    "heldout_prompts": Metric("prompts", "prompts that these pairs are of"),
    "heldout_calibration_error": Metric("fraction", "mean |predicted - observed| agreement"),
    "annotator_agreement": Metric("fraction", "equal verdicts of two annotators on a pair"),
    "annotator_alpha": Metric("1", "Krippendorff's alpha of these verdicts, nominal"),
    "pairs_kept": Metric("pairs", "ordered pairs in the step's rankings"),
    "pairs_tied": Metric("pairs", "pairs left out because the labeler called a tie"),
    **_optimizer("reward model"),
}
_DPO = {
    "loss": Metric("1", "preference loss: mean over pairs of a ranking, then rankings"),
    "pair_accuracy": Metric("fraction", "pairs that the implicit reward orders as labeled"),
    "margin": Metric("reward", "implicit reward of the better less the worse, mean over pairs"),
    "best_logprob": Metric("nats/sequence", "log-probability of the best completion, mean"),
    "worst_logprob": Metric("nats/sequence", "log-probability of the worst completion, mean"),
    "heldout_loss": Metric("1", "preference loss on held-out rankings"),
    "heldout_pair_accuracy": Metric("fraction", "pairs ordered as labeled, held out"),
    "heldout_pair_accuracy_low": Metric("fraction", "its 95 % interval, clustered by prompt"),
    "heldout_pair_accuracy_high": Metric("fraction", "its 95 % interval, clustered by prompt"),
    **_optimizer("policy"),
}
_REJECTION = {
    "score_mean": Metric("reward", "score of a sample, mean"),
    "score_std": Metric("reward", "score of a sample, deviation"),
    "best_score_mean": Metric(
        "reward", "highest score of the iteration's samples of a prompt, mean"
    ),
    "kept_score_mean": Metric("reward", "score of the samples that are trained on, mean"),
    "kept_score_max": Metric("reward", "highest score of the samples that are trained on"),
    "kept_tokens_mean": Metric("tokens", "length of a sample that is trained on, mean"),
    "response_tokens_mean": Metric("tokens", "length of a sample, mean"),
    "eos_rate": Metric("fraction", "samples that ended by themselves"),
    "loss": Metric("nats/token", "next-token loss on the tokens of the samples, mean over steps"),
    "optimizer_steps": Metric("steps", "optimizer steps of the iteration"),
    **_optimizer("policy"),
    "generated": Metric("sequences", "sequences asked of the engines"),
    "trained": Metric("sequences", "sequences trained on for the first time"),
    "reused": Metric("sequences", "sequences of earlier iterations that are trained on again"),
    "dropped": Metric("sequences", "sequences dropped, each with a reason"),
    "parity_max": Metric("nats", "largest |trainer - engine| after the weight sync, probe tokens"),
    "parity_mean": Metric("nats", "mean |trainer - engine| after the weight sync, probe tokens"),
    "sync_bytes": Metric("bytes", "weights sent to each engine"),
    "sync_seconds": _seconds("weight sync: until the engines may sample again"),
    "step_seconds": _seconds("one whole iteration, held-out prompts left out"),
    "tokens_per_second": Metric("tokens/s", "sampled tokens per second", timing=True),
}
_HELDOUT = {
    "gold_mean": Metric("gold", "noise-free score of held-out prompts, mean"),
    "gold_rude_rate": Metric("fraction", "rude responses to held-out prompts"),
    "gold_truthful_rate": Metric("fraction", "truthful responses to held-out prompts"),
    "heldout_score_mean": Metric("reward", "reward of answers to held-out prompts, mean"),
    "heldout_response_tokens_mean": Metric("tokens", "length of these answers, mean"),
    "heldout_eos_rate": Metric(
        "fraction", "fraction of these answers that ended with the end token"
    ),
    "heldout_preferred": Metric(
        "fraction", "of these answers, those that the judge prefers to the first model's; tie: half"
    ),
    "heldout_preferred_low": Metric("fraction", "its 95 % interval"),
    "heldout_preferred_high": Metric("fraction", "its 95 % interval"),
    "heldout_failed": Metric("sequences", "of these answers, those without a reward"),
}
_PPO = {
    "score_mean": Metric("reward", "score of a sequence before the KL penalty, mean"),
    "score_std": Metric("reward", "score of a sequence before the KL penalty, deviation"),
    "kl_sequence": Metric("nats/sequence", "KL(policy || reference), k1 estimate, mean"),
    "kl_coefficient": Metric("reward/nat", "weight of the KL penalty"),
    "shaped_return": Metric("reward", "score minus KL penalty, mean over sequences"),
    "response_tokens_mean": Metric("tokens", "length of a response, mean"),
    "eos_rate": Metric("fraction", "responses that ended by themselves"),
    "turns_mean": Metric("turns", "turns of the policy in a sequence, mean"),
    "observation_tokens_mean": Metric(
        "tokens", "tokens of a response that the environment said, mean"
    ),
    "policy_loss": Metric("1", "loss of the policy, with any KL term, averaged as configured"),
    "kl_loss": Metric("nats", "KL(policy || reference) as a term of the loss, averaged with it"),
    "value_loss": Metric("reward^2", "half the clipped squared error, mean over counted tokens"),
    "ptx_loss": Metric("nats/token", "next-token loss of the pretraining text mixed in"),
    "clip_fraction": Metric("fraction", "counted tokens whose ratio was clipped"),
    "approx_kl": Metric("nats/token", "KL(old policy || policy), k3 estimate, mean"),
    "entropy": Metric("nats/token", "entropy of the policy, mean over counted tokens"),
    "ratio_max": Metric("1", "largest probability ratio policy / old policy"),
    "importance_mean": Metric("1", "bounded weight trainer / engine of a token, mean"),
    "importance_capped": Metric("fraction", "counted tokens whose weight was beyond a bound"),
    "explained_variance": Metric("fraction", "share of the returns' variance the critic explains"),
    "value_clip_fraction": Metric("fraction", "counted tokens whose value was clipped"),
    "policy_grad_norm": Metric("1", "L2 norm of the policy gradient before clipping"),
    "critic_grad_norm": Metric("1", "L2 norm of the critic gradient before clipping"),
    "policy_learning_rate": Metric("1", "learning rate of the policy"),
    "critic_learning_rate": Metric("1", "learning rate of the critic"),
    "policy_version": Metric("version", "policy version that generated this iteration's sequences"),
    "lag_max": Metric("updates", "policy updates since the oldest sequence began"),
    "generated": Metric("sequences", "sequences asked of the engines, those ahead included"),
    "open": Metric("sequences", "asked for ahead of their turn, not yet trained or dropped"),
    "trained": Metric("sequences", "sequences trained on"),
    "dropped": Metric("sequences", "sequences dropped, each with a reason"),
    "skipped_steps": Metric("steps", "optimizer steps skipped, of policy and critic: not finite"),
    "engine_logprobs": Metric(
        "flag", "1: the old log-probabilities are the engine's, 0: the trainer computed them"
    ),
    "mismatch_max": Metric("nats", "largest |trainer - engine| log-probability"),
    "mismatch_mean": Metric("nats", "mean |trainer - engine| log-probability"),
    "mismatch_k3": Metric("nats/token", "KL(engine || trainer), k3 estimate, mean"),
    "parity_max": Metric("nats", "largest |trainer - engine| after the weight sync, probe tokens"),
    "parity_mean": Metric("nats", "mean |trainer - engine| after the weight sync, probe tokens"),
    "sync_bytes": Metric("bytes", "weights sent to each engine"),
    "sync_seconds": _seconds("weight sync: until the engines may sample again"),
    "sync_transfer_seconds": _seconds("of these, until the engines hold the new weights"),
    "engines": Metric("engines", "rollout engines that serve, lost ones left out", timing=True),
    "step_seconds": _seconds("one whole iteration"),
    "tokens_per_second": Metric("tokens/s", "response tokens trained per second", timing=True),
    **{f"seconds/{phase}": _seconds(f"phase {phase} of the iteration") for phase in PPO_PHASES},
    **{name: metric for role in _ROLES for name, metric in _role_time(role).items()},
}

#: name -> unit, description, and whether it is a timing. Stage `pretrain_large` records under
#: `pretrain/`, stage `ppo_ptx` under `ppo/`; the record's stage tells them apart.
METRICS: dict[str, Metric] = {
    f"{family}/{name}": metric
    for family, metrics in {
        "pretrain": _PRETRAIN,
        "sft": _SFT,
        "constitution": _CONSTITUTION,
        "label": _LABEL,
        "reward_model": _REWARD_MODEL,
        "ppo": _PPO | _HELDOUT,
        "dpo": _DPO,
        "rejection": _REJECTION | _HELDOUT,
    }.items()
    for name, metric in metrics.items()
}


_TERMS = {
    "reward": Metric("reward", "one term of the reward, before its weight, mean"),
    "reward_std": Metric("reward", "the same, deviation"),
    "reward_failed": Metric("sequences", "sequences on which one term of the reward failed"),
    "heldout_reward": Metric("reward", "one term of the reward of held-out answers, mean"),
}

#: Metrics that exist once per part of the run's data, or per cause; its name is appended.
METRIC_FAMILIES: dict[str, Metric] = {
    "ppo/dropped/": Metric("sequences", "of the dropped ones, those of one cause"),
    "rejection/dropped/": Metric("sequences", "of the dropped ones, those of one cause"),
    **{
        f"{family}/{name}/": metric
        for family in ("ppo", "rejection")
        for name, metric in _TERMS.items()
    },
    "reward_model/heldout_pair_accuracy/source/": Metric(
        "fraction", "pairs of one data set ordered as the labeler did, held out"
    ),
    "reward_model/heldout_pair_accuracy/completions/": Metric(
        "fraction", "pairs of rankings of K completions ordered as the labeler did, held out"
    ),
}


class UnknownMetricError(AssertionError):
    """The code recorded a metric that is not in the registry."""


def metric_of(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UnknownMetricError: `name` is not in the registry.
    """
    metric = METRICS.get(name) or next(
        (m for prefix, m in METRIC_FAMILIES.items() if name.startswith(prefix)), None
    )
    if metric is None:
        raise UnknownMetricError(f"metric {name!r} is not in METRICS; add it with its unit")
    return metric


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One value of one metric and step."""

    stage: str
    step: int
    name: str
    value: float
    unit: str
    timing: bool = False

    @classmethod
    def make(cls, stage: str, step: int, name: str, value: float) -> MetricRecord:
        """Create a record with unit and kind from the registry.

        Raises:
            UnknownMetricError: `name` is not in the registry.
        """
        metric = metric_of(name)
        return cls(stage, step, name, float(value), metric.unit, metric.timing)

    def to_line(self) -> str:
        """One line of metrics.jsonl. NaN or infinity: value null, and its name in `nonfinite`."""
        fields: dict[str, object] = {
            "stage": self.stage,
            "step": self.step,
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "unit": self.unit,
        }
        if not math.isfinite(self.value):
            fields["nonfinite"] = str(self.value)
        if self.timing:
            fields["timing"] = True
        return json.dumps(fields, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> MetricRecord:
        """The inverse of `to_line`.

        Raises:
            ValueError, TypeError, KeyError: the line is no record.
        """
        return cls.from_fields(json.loads(line))

    @classmethod
    def from_fields(cls, fields: Any) -> MetricRecord:
        """The inverse of `to_line`, after JSON has been read.

        Raises:
            ValueError, TypeError, KeyError: it is no record.
        """
        if not isinstance(fields, dict):
            raise TypeError("a record must be an object")
        value = fields["value"]
        if value is None:
            value = _NONFINITE[fields["nonfinite"]]
        else:
            require_number(value, "value")
        record = cls(
            stage=fields["stage"],
            step=fields["step"],
            name=fields["name"],
            value=float(value),
            unit=fields["unit"],
            timing=fields.get("timing", False),
        )
        return verified(record, finite=False)


_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_metrics(path: Path) -> list[MetricRecord]:
    """All records of a metrics.jsonl, in order.

    A killed run can leave a last line without newline, which is not a record.

    Raises:
        DataLineError: a line is no metric record.
    """
    records: list[MetricRecord] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                records.append(MetricRecord.from_line(line))
            except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
                raise DataLineError(
                    f"not a metric record: {complaint(error)}",
                    where=f"{path}:{number}",
                    fix="the file was edited or damaged; remove the line",
                ) from error
    return records


def read_whole_metrics(path: Path, damage: Damage) -> list[MetricRecord]:
    """The readable records of a metrics.jsonl; other lines are noted in `damage`."""
    return list(damage.lines(path, MetricRecord.from_fields))


def comparable(records: Iterable[MetricRecord]) -> list[MetricRecord]:
    """The records that are equal in two runs of the same seed and configuration: no timings."""
    return [record for record in records if not record.timing]


def series(records: Iterable[MetricRecord], stage: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of one stage, in recorded order."""
    return [(r.step, r.value) for r in records if r.stage == stage and r.name == name]
