"""The results of a run as typed records, and summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.results.best_of import parts_of
from orchestrator.results.constitution_figures import ConstitutionFigures
from orchestrator.results.environment_gains import Gain
from orchestrator.results.few_shot import prompted_parts
from orchestrator.results.label_figures import LabelFigures
from orchestrator.results.overoptimization import Overoptimization, consistent
from orchestrator.results.reward_model_figures import RewardModelFigures
from orchestrator.results.round_figures import RoundFigures, round_from_json, round_to_json
from orchestrator.run_files.damage import Damage, require_count, require_list, verified, whole
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.folder import RunFolder, write_json
from workers.data.tables.accounts import SetAccount
from workers.errors import DataError
from workers.records.processes import RoleInfo

T = TypeVar("T")

# Models that have a label, in the order of the recipe; those of variants come in the run's order.
MODEL_ORDER = (
    "base",
    "large",
    "teacher",
    "sft",
    "ppo",
    "ppo_ptx",
    "dpo",
    "online_dpo",
    "rejection_sampling",
)
MODEL_LABELS = {
    "base": "base",
    "large": "large base",
    "teacher": "teacher",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "dpo": "DPO",
    "online_dpo": "online DPO",
    "rejection_sampling": "rejection",
}


def model_label(name: str) -> str:
    """How a model is called in tables and plots."""
    base, shots = prompted_parts(name)
    if shots:
        return f"{MODEL_LABELS.get(base, base)}, {shots} shots"
    model, n = parts_of(name)
    label = MODEL_LABELS.get(model, model)
    return f"{label}, best of {n}" if n else MODEL_LABELS.get(name, name)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task of the evaluation harness, in that metric's own unit."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class FlagRate:
    """Share of a model's answers of which people say that something is true."""

    rate: float
    low: float  # 95 % interval, clustered by prompt
    high: float
    n: int  # judgments


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """Evaluation of one model on held-out prompts and texts. None = not measured on this data."""

    gold_mean: float | None = None  # noise-free score, mean
    web_perplexity: float | None = None  # exp(mean nats per token) of pretraining-style text
    truthful_rate: float | None = None  # fraction of responses
    rude_rate: float | None = None  # fraction of responses
    length_mean: float | None = None  # tokens, end-of-sequence token included
    correct_rate: float | None = None  # fraction of responses
    cloze_accuracy: float | None = None  # fraction of facts completed, pretraining style
    lm_eval: dict[str, dict[str, TaskScore]] = field(default_factory=dict)  # task -> metric
    likert_mean: float | None = None  # quality from 1 to 7 by people, mean
    flags: dict[str, FlagRate] = field(default_factory=dict)  # yes/no field -> rate, by people
    reward_mean: float | None = None  # of the best of n answers: the reward that chose them, mean
    kl_bound: float | None = None  # nats, upper bound of their KL to the model that is sampled
    parameters: int | None = None  # of the model


@dataclass(frozen=True, slots=True)
class Preference:
    """How often `model` is preferred to `over` on the same prompts; a tie counts half."""

    model: str
    over: str
    rate: float
    low: float  # 95 % interval
    high: float
    n: int  # prompts


@dataclass(frozen=True, slots=True)
class Judging:
    """The judge of the evaluation, and the outcome of its requests."""

    judge: str  # gold | function | endpoint | human | reward_ and the name of a reward source
    asked: int = 0  # requests answered by the endpoint, two per pair of responses
    cached: int = 0  # requests answered from the cache of earlier runs
    failed: int = 0  # pairs of responses without a verdict; left out of the win rates
    order_dependent: int = 0  # pairs whose verdict changed with their order; counted as ties


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Sequences over all PPO steps: generated = trained + dropped (+ open within a stage)."""

    generated: int = 0
    trained: int = 0
    dropped: int = 0

    @property
    def open(self) -> int:
        """Sequences requested ahead of their iteration, which are not yet trained or dropped."""
        return self.generated - self.trained - self.dropped


@dataclass(frozen=True, slots=True)
class WeightSyncTotals:
    """Weight syncs of the run."""

    count: int = 0
    seconds_median: float | None = None
    parity_max_abs_logprob_diff: float | None = None  # nats, worst over all syncs


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock seconds."""

    total_seconds: float = 0.0
    # from the start of the job to the first optimizer step of any stage
    first_optimizer_step_seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    ppo_phases: dict[str, float] = field(default_factory=dict)  # phases may overlap
    start: dict[str, float] = field(default_factory=dict)  # by part, up to the first PPO update


@dataclass(frozen=True, slots=True)
class MirrorTotals:
    """Copies of checkpoints to `run.mirror` by the last process of the run."""

    url: str
    copied: int = 0  # checkpoints
    skipped: int = 0  # checkpoints that a newer one replaced before they were copied
    failures: int = 0  # attempts
    newest: str = ""  # complete copy
    trouble: str = ""  # why the last attempt failed; "" after a success


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything in summary.json."""

    reward_model: RewardModelFigures = field(default_factory=RewardModelFigures)
    reward_models: dict[str, RewardModelFigures] = field(default_factory=dict)  # of variants
    labels: dict[str, LabelFigures] = field(default_factory=dict)  # of runs of the stage label
    rounds: tuple[RoundFigures, ...] = ()
    constitutions: dict[str, ConstitutionFigures] = field(default_factory=dict)  # of its runs
    models: dict[str, EvaluationRow] = field(default_factory=dict)  # by name, in the run's order
    preferred: tuple[Preference, ...] = ()
    judging: Judging | None = None
    environment_gains: tuple[Gain, ...] = ()
    overoptimization: Overoptimization | None = None  # of the stage of this name
    ledger: LedgerTotals = LedgerTotals()
    drops: dict[str, int] = field(default_factory=dict)  # sequences, by reason
    weight_sync: WeightSyncTotals = WeightSyncTotals()
    timing: Timing = Timing()
    # stage -> role -> most resident bytes of its workers in that stage, if they were measured
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    restarts: int = 0  # times that workers were lost, over all processes of the run
    discarded_replies: int = 0  # replies of lost workers that were not used
    given_up: tuple[str, ...] = ()  # lost engines without which the run continued
    mirror: MirrorTotals | None = None  # None without run.mirror
    roles: tuple[RoleInfo, ...] = ()
    data: tuple[SetAccount, ...] = ()  # only with data.source=files

    def ordered_models(self) -> list[str]:
        """The evaluated models in the run's order; in that of the recipe if it made no others.

        The best of n answers of a model follow the model.
        """
        plain = [name for name in self.models if not parts_of(name)[1]]
        if all(name in MODEL_ORDER for name in plain):
            plain = [name for name in MODEL_ORDER if name in plain]

        def place(name: str) -> tuple[int, int]:
            model, n = parts_of(name)
            return plain.index(model) if model in plain else len(plain), n

        return sorted(self.models, key=place)

    def preference(self, model: str, over: str) -> Preference | None:
        """The comparison of two models, if it was made."""
        for preference in self.preferred:
            if (preference.model, preference.over) == (model, over):
                return preference
        return None


def write_summary(folder: RunFolder, summary: Summary) -> None:
    """Write summary.json atomically; values that were not measured are null.

    Raises:
        NonFiniteError: a figure is NaN or infinite.
    """
    write_json(folder.summary, to_json(summary))


def read_summary(path: Path, damage: Damage | None = None) -> Summary:
    """Read a summary.json.

    Args:
        path: The file.
        damage: Collects notes on parts that cannot be used; the rest is returned.

    Raises:
        DataError: the file is no summary, and `damage` is None.
    """
    found = damage or Damage()
    text = found.text(path)
    plain = found.part(path, "it", lambda: json.loads(text), None) if text is not None else None
    if isinstance(plain, dict):
        summary = _from_json(plain, path, found)
    else:
        if plain is not None:
            found.note(path, "it is no JSON object")
        summary = Summary()
    if damage is None and (notes := found.notes()):
        raise DataError(
            f"not a summary of a run: {notes[0]}", where=str(path), fix="repeat the run's report"
        )
    return summary


def to_json(summary: Summary) -> dict[str, object]:
    """The summary as plain JSON values; the key names are fixed."""
    sync, timing = summary.weight_sync, summary.timing
    return {
        "stages": {
            "reward_model": summary.reward_model.to_json(),
            **{name: found.to_json() for name, found in summary.reward_models.items()},
        },
        "evaluation": {
            "models": {name: _row(summary.models[name]) for name in summary.ordered_models()},
            "preferred": [
                {
                    "model": p.model,
                    "over": p.over,
                    "rate": p.rate,
                    "ci95": [p.low, p.high],
                    "n": p.n,
                }
                for p in summary.preferred
            ],
            "judging": asdict(summary.judging) if summary.judging else None,
        },
        "environment_gains": [each.to_json() for each in summary.environment_gains],
        "labels": {name: found.to_json() for name, found in summary.labels.items()},
        "rounds": [round_to_json(each) for each in summary.rounds],
        "constitutions": {n: found.to_json() for n, found in summary.constitutions.items()},
        "ledger": {
            "generated": summary.ledger.generated,
            "trained": summary.ledger.trained,
            "dropped": summary.ledger.dropped,
        },
        "overoptimization": asdict(summary.overoptimization) if summary.overoptimization else None,
        "drops": summary.drops,
        "weight_sync": {
            "count": sync.count,
            "seconds_median": sync.seconds_median,
            "parity_max_abs_logprob_diff": sync.parity_max_abs_logprob_diff,
        },
        "timing": {
            "total_seconds": timing.total_seconds,
            "first_optimizer_step_seconds": timing.first_optimizer_step_seconds,
            "start": timing.start,
            "stages": timing.stages,
            "ppo_phases": timing.ppo_phases,
        },
        "memory": summary.memory,
        "restarts": summary.restarts,
        "discarded_replies": summary.discarded_replies,
        "given_up": list(summary.given_up),
        "mirror": asdict(summary.mirror) if summary.mirror else None,
        "roles": [
            {"role": r.role, "rank": r.rank, "pid": r.pid, "node": r.node, "device": r.device}
            for r in summary.roles
        ],
        "data": {
            each.name: {
                key: value
                for key, value in asdict(each).items()
                if key != "name" and (value or key not in ("unread", "labels"))
            }
            for each in summary.data
        },
    }


def _row(row: EvaluationRow) -> dict[str, object]:
    fields: dict[str, object] = {
        "gold_mean": row.gold_mean,
        "web_perplexity": row.web_perplexity,
        "truthful_rate": row.truthful_rate,
        "rude_rate": row.rude_rate,
        "length_mean": row.length_mean,
    }
    extra: dict[str, object] = {
        "correct_rate": row.correct_rate,
        "cloze_accuracy": row.cloze_accuracy,
        "lm_eval": {
            task: {name: asdict(score) for name, score in metrics.items()}
            for task, metrics in row.lm_eval.items()
        }
        or None,
        "likert_mean": row.likert_mean,
        "flags": {name: asdict(rate) for name, rate in row.flags.items()} or None,
        "reward_mean": row.reward_mean,
        "kl_bound": row.kl_bound,
        "parameters": row.parameters,
    }
    return fields | {name: value for name, value in extra.items() if value is not None}


#: Keys of summary.json that earlier versions did not write.
LATER_KEYS = frozenset(
    {
        "drops",
        "memory",
        "restarts",
        "discarded_replies",
        "given_up",
        "mirror",
        "overoptimization",
        "labels",
        "rounds",
        "environment_gains",
        "constitutions",
    }
)


def _row_from_json(data: dict[str, Any]) -> EvaluationRow:
    tasks = {
        task: {name: whole(TaskScore, score) for name, score in metrics.items()}
        for task, metrics in data.get("lm_eval", {}).items()
    }
    flags = {name: whole(FlagRate, rate) for name, rate in data.get("flags", {}).items()}
    figures = {name: value for name, value in data.items() if name not in ("lm_eval", "flags")}
    for name in ("gold_mean", "web_perplexity", "truthful_rate", "rude_rate", "length_mean"):
        _ = data[name]  # the key is required, its value may be null
    return verified(EvaluationRow(**figures, lm_eval=tasks, flags=flags))


def _preference(p: dict[str, Any]) -> Preference:
    low, high = p["ci95"]
    return verified(Preference(p["model"], p["over"], p["rate"], low, high, p["n"]))


def _account(name: str, data: dict[str, Any]) -> SetAccount:
    # these two keys are not written when empty; a missing count is an error, not 0
    return whole(SetAccount, {"unread": [], "labels": ""} | data | {"name": name})


def _mirror(data: dict[str, Any] | None) -> MirrorTotals | None:
    return whole(MirrorTotals, data) if data is not None else None


def _judging(data: dict[str, Any] | None) -> Judging | None:
    return whole(Judging, data) if data is not None else None


def _overoptimization(data: dict[str, Any] | None) -> Overoptimization | None:
    return consistent(from_plain(Overoptimization, data)) if data is not None else None


def _from_json(data: dict[str, Any], path: Path, damage: Damage) -> Summary:
    def part(key: str, make: Callable[[Any], T], otherwise: T) -> T:
        def made() -> T:
            value: Any = data
            for name in key.split("/"):
                value = value[name]
            return make(value)

        if key in LATER_KEYS and key not in data:
            return otherwise

        return damage.part(path, key, made, otherwise)

    return Summary(
        reward_model=part(
            "stages/reward_model",
            lambda v: verified(RewardModelFigures.from_json(v)),
            RewardModelFigures(),
        ),
        reward_models=part("stages", _reward_models, {}) if _has_variants(data) else {},
        labels=part("labels", _labels, {}),
        rounds=part("rounds", lambda v: tuple(map(round_from_json, require_list(v))), ()),
        constitutions=part("constitutions", _constitutions, {}),
        models=part(
            "evaluation/models",
            lambda v: {str(name): _row_from_json(row) for name, row in v.items()},
            {},
        ),
        preferred=part(
            "evaluation/preferred", lambda v: tuple(map(_preference, require_list(v))), ()
        ),
        judging=part("evaluation/judging", _judging, None),
        environment_gains=part(
            "environment_gains", lambda v: tuple(map(Gain.from_json, require_list(v))), ()
        ),
        overoptimization=part("overoptimization", _overoptimization, None),
        ledger=part("ledger", lambda v: whole(LedgerTotals, v), LedgerTotals()),
        drops=part("drops", _counts, {}),
        weight_sync=part("weight_sync", lambda v: whole(WeightSyncTotals, v), WeightSyncTotals()),
        timing=part("timing", lambda v: whole(Timing, v), Timing()),
        memory=part("memory", lambda v: {str(n): _counts(each) for n, each in v.items()}, {}),
        restarts=part("restarts", _count, 0),
        discarded_replies=part("discarded_replies", _count, 0),
        given_up=part("given_up", _names, ()),
        mirror=part("mirror", _mirror, None),
        roles=part("roles", lambda v: tuple(whole(RoleInfo, role) for role in require_list(v)), ()),
        data=part(
            "data",
            lambda v: tuple(_account(name, each) for name, each in v.items()),
            (),
        ),
    )


def _labels(value: dict[str, Any]) -> dict[str, LabelFigures]:
    return {str(name): LabelFigures.from_json(found) for name, found in value.items()}


def _constitutions(value: dict[str, Any]) -> dict[str, ConstitutionFigures]:
    return {str(name): ConstitutionFigures.from_json(found) for name, found in value.items()}


def _has_variants(data: dict[str, Any]) -> bool:
    stages = data.get("stages")
    return isinstance(stages, dict) and bool(stages.keys() - {"reward_model"})


def _reward_models(stages: dict[str, Any]) -> dict[str, RewardModelFigures]:
    return {
        str(name): verified(RewardModelFigures.from_json(figures))
        for name, figures in stages.items()
        if name != "reward_model"
    }


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("it must be a list of names")
    return tuple(value)


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise TypeError("it must be an object of counts")
    return {str(name): _count(count) for name, count in value.items()}


def _count(value: Any) -> int:
    require_count(value, "it")
    return value
