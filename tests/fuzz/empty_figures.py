"""Which figures of a run folder may be null or empty, and what its report then leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.results.constitution_figures import ConstitutionFigures, Share
from orchestrator.results.environment_gains import Gain
from orchestrator.results.label_figures import LabelFigures
from orchestrator.results.overoptimization import (
    Estimate,
    Fit,
    OptimisedPolicy,
    Overoptimization,
    Proxy,
    Together,
    Trend,
)
from orchestrator.results.reward_model_figures import (
    Agreement,
    Calibration,
    CalibrationBin,
    PairAccuracy,
    RewardModelFigures,
)
from orchestrator.results.round_figures import RoundFigures
from orchestrator.results.summary import (
    LATER_KEYS,
    EvaluationRow,
    FlagRate,
    Judging,
    LedgerTotals,
    MirrorTotals,
    Preference,
    Summary,
    TaskScore,
    Timing,
    WeightSyncTotals,
)
from workers.data.tables.accounts import SetAccount
from workers.records.processes import RoleInfo

FIT = Fit(Estimate(1.59, 1.4, 1.8), Estimate(0.98, 0.9, 1.1), Estimate(0.83, 0.7, 1.0), 0.987)
#: No two figures that a report shows are the same text, so that each can be looked for.
MEASURED = Summary(
    reward_model=RewardModelFigures(
        heldout=PairAccuracy(0.751, 0.702, 0.803, 1201, 307),
        by_source={"web-one": PairAccuracy(0.804, 0.725, 0.856, 707, 208)},
        by_completions={
            2: PairAccuracy(0.715, 0.616, 0.817, 509, 110),
            9: PairAccuracy(0.718, 0.619, 0.820, 511, 112),
        },
        calibration=Calibration(0.037, (CalibrationBin(0.6, 0.62, 0.5, 0.7, 600),)),
        agreement=Agreement(0.727, 0.706, 0.748, 0.46, 91, 31, 3),
    ),
    labels={
        "label_2": LabelFigures(
            "gold", ("ppo", "sft"), 641, 608, {"too blank": 33}, 97, 13, 1207,
            PairAccuracy(0.612, 0.58, 0.64, 151, 13),
        )
    },
    constitutions={
        "revising": ConstitutionFigures(
            "function", 643, 617, {"too plain": 26}, 501, 116, 419,
            Share(0.237, 0.21, 0.26, 617), Share(0.017, 0.01, 0.03, 617),
        )
    },
    rounds=(
        RoundFigures(
            "label_2", "rm_2", "ppo_2", 97, 1207, PairAccuracy(0.612, 0.58, 0.64, 151, 13),
            PairAccuracy(0.644, 0.61, 0.68, 151, 13), 2.46, 1.34, 11.59,
        ),
    ),
    models={
        "sft": EvaluationRow(
            1.13, 2.17, 0.523, 0.129, 6.7, 0.331, 0.437,
            {"sums": {"acc": TaskScore(0.5391, 0.1), "norm": TaskScore(0.5483)}},
            4.37, {"hallucination": FlagRate(0.213, 0.15, 0.27, 79)}, 0.57, 1.71, 8192,
        ),
        "ppo": EvaluationRow(2.19, 3.23, 0.941, 0.043, 8.9, 0.547, 0.653),
    },
    preferred=(Preference("ppo", "sft", 0.77, 0.66, 0.88, 64),),
    environment_gains=(Gain("ppo", "silent", 0.314, 0.271, 0.358, 77),),
    judging=Judging("endpoint", asked=7, cached=1, failed=2, order_dependent=3),
    ledger=LedgerTotals(10, 9, 1),
    weight_sync=WeightSyncTotals(4, 0.559, 2.3e-06),
    timing=Timing(60.0, 9.0, {"ppo": 5.0}, {"generate": 2.0}, {"first_iteration": 17.0}),
    memory={"ppo": {"policy": 4_896_262_717}},
    drops={"too odd": 1},
    overoptimization=Overoptimization(
        "labeler", 61, 513, 17.0, 0.963, True, (1, 3, 7, 19), (0.0, 0.43, 1.09, 2.0),
        (1.51, 2.03, 2.47, 2.91),
        (
            Proxy(
                "few", 67, 816_768, (0.0, 0.41, 0.87, 1.23), (1.51, 1.97, 2.23, 1.79),
                (1.4, 1.8, 2.1, 1.6), (1.6, 2.1, 2.3, 1.9), (0.0, 0.7, 1.2, 1.7), 7, 0.99,
                Estimate(0.69, 0.5, 0.9), FIT, FIT,
            ),
        ),
        (
            OptimisedPolicy(
                "arm", "few", 0.013, (0, 2, 4, 6), (0.0, 1.27, 2.84, 5.62),
                (1.51, 1.93, 2.07, 1.14), (0.0, 0.5, 0.9, 1.3), 2, FIT,
            ),
        ),
        (Together("few", 3, 12, FIT),),
        (Trend("peak", "rankings", 9, Estimate(0.81, 0.4, 0.95), Estimate(0.21, 0.1, 0.3)),),
    ),
    given_up=("rollout/1",),
    mirror=MirrorTotals("s3://bucket/run", 41, 6, 14, "000041-ppo-40", "no route"),
    roles=(RoleInfo("policy", 0, 1, "node", "cpu"),),
    data=(SetAccount("mine", "prompts", "p.jsonl", 0.5, read=12, dropped={"too-long": 2},
                     unread=["lang"]),),
)  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


_IN_MODELS: dict[str, Callable[[float], str]] = {
    "gold_mean": "{:.2f}".format,
    "web_perplexity": "{:.2f}".format,
    "truthful_rate": _percent,
    "rude_rate": _percent,
    "length_mean": "{:.1f}".format,
    "correct_rate": _percent,
    "cloze_accuracy": _percent,
    "likert_mean": "{:.2f}".format,
    "reward_mean": "{:.2f}".format,
    "kl_bound": "{:.2f}".format,
}
# Place -> what stands there where it was not measured, and what the report then no longer shows
# ("" = it never shows that).
_ABSENT: dict[str, tuple[Any, str | Callable[[float], str]]] = {
    **{f"evaluation/models/*/{name}": (None, form) for name, form in _IN_MODELS.items()},
    "evaluation/models/*/parameters": (None, ""),  # plotted
    "evaluation/models": ({}, "held-out prompts"),
    "evaluation/models/*/lm_eval": ({}, "sums"),
    "evaluation/models/*/lm_eval/sums": ({}, "sums"),
    "evaluation/models/*/lm_eval/sums/*/stderr": (None, ""),
    "evaluation/models/*/flags": ({}, "hallucination"),
    "labels": ({}, "641 answers"),
    "labels/*/models": ([], ""),
    "labels/*/left_out": ({}, "33 too blank"),
    "labels/*/before": (None, ""),
    "constitutions": ({}, "643 answers"),
    "constitutions/*/left_out": ({}, "26 too plain"),
    "constitutions/*/rude_before": (None, "23.7 % [21.0, 26.0]"),
    "constitutions/*/rude_after": (None, "1.7 % [1.0, 3.0]"),
    "rounds": ([], "<th>accuracy before</th>"),
    "rounds/*/rankings": (None, "<td>97</td>"),
    "rounds/*/pairs": (None, ""),
    "rounds/*/before": (None, "61.2 % [58-64]"),
    "rounds/*/after": (None, "64.4 % [61-68]"),
    "rounds/*/gold": (None, "{:.2f}".format),
    "rounds/*/reward": (None, "{:.2f}".format),
    "rounds/*/kl": (None, "{:.2f}".format),
    "evaluation/preferred": ([], "preferred to"),
    "evaluation/judging": (None, "questions asked"),
    "environment_gains": ([], "+31.4 points [27.1 to 35.8]"),
    "stages/reward_model/by_source": ({}, "web-one"),
    "stages/reward_model/by_completions": ({}, "K = "),
    "stages/reward_model/calibration": (None, "calibration error"),
    "stages/reward_model/annotators": (None, "annotators agree"),
    "stages/reward_model/annotators/alpha": (None, "alpha {:.2f}".format),
    "weight_sync/seconds_median": (None, "median {:.3f}".format),
    "weight_sync/parity_max_abs_logprob_diff": (None, "{:.1e}".format),
    "timing/first_optimizer_step_seconds": (None, "first optimizer step"),
    "timing/start": ({}, "first PPO update"),
    "timing/stages": ({}, ""),  # plotted
    "timing/ppo_phases": ({}, ""),
    "memory": ({}, "4.56 GiB"),
    "memory/*": ({}, "4.56 GiB"),
    "drops": ({}, "too odd"),
    "overoptimization": (None, "513 answers"),
    "overoptimization/proxies": ([], "817k"),
    "overoptimization/policies": ([], "0.013"),
    "overoptimization/together": ([], "all 3 of few"),
    "overoptimization/trends": ([], "9 proxies"),
    "overoptimization/p*/*/fit": (None, ""),
    "overoptimization/*/*/fit_exact": (None, ""),
    "overoptimization/*/*/fit/r2": (None, ""),
    "overoptimization/*/*/fit_exact/r2": (None, ""),
    "overoptimization/*/*/*/*/*": (None, ""),  # of an estimate
    "overoptimization/proxies/*/below_oracle/*": (None, ""),
    "overoptimization/trends/*/*/*": (None, ""),
    "overoptimization/proxies/*/rankings": (None, ""),
    "overoptimization/proxies/*/parameters": (None, ""),
    "given_up": ([], ""),
    "mirror": (None, "41 checkpoints copied"),
    "roles": ([], "1 policy"),
    "data": ({}, "<td>mine</td>"),
    "data/*/dropped": ({}, "too-long"),
    "data/*/unread": ([], ""),
    "[0-9]*/gold": ({}, lambda gold: f"{gold['sft']:+.2f}" if gold else ""),
    "[0-9]*/scores": ({}, lambda scores: f"{scores['rank 1']:+.2f}" if scores else ""),
}
# Tables of names, of which one may be gone; and keys that the writer leaves out where they are
# empty, or that it had not always.
_TABLES = (
    *(
        "labels",
        "labels/*/left_out",
        "constitutions",
        "constitutions/*/left_out",
        "timing/stages",
        "timing/ppo_phases",
        "timing/start",
        "memory",
        "memory/*",
        "evaluation/models",
        "data",
    ),
    *("evaluation/models/*/lm_eval", "evaluation/models/*/lm_eval/*", "data/*/dropped", "drops"),
    "evaluation/models/*/flags",
    *("stages/reward_model/by_source", "stages/reward_model/by_completions"),
    *("[0-9]*/responses", "[0-9]*/gold", "[0-9]*/scores"),
)
_OPTIONAL = (
    *("evaluation/models/*/correct_rate", "evaluation/models/*/cloze_accuracy"),
    *("evaluation/models/*/likert_mean", "evaluation/models/*/flags"),
    *("evaluation/models/*/reward_mean", "evaluation/models/*/kl_bound"),
    *("evaluation/models/*/parameters", "labels/*/judging"),
    *("evaluation/models/*/lm_eval", "data/*/unread", "data/*/labels", "[0-9]*/gold"),
    *("[0-9]*/scores", *LATER_KEYS),
)


def may_be_gone(path: Sequence[str]) -> bool:
    """Whether a key may be missing without a word."""
    return any(_is_at(path[:-1], t) for t in _TABLES) or any(_is_at(path, o) for o in _OPTIONAL)


def _is_at(path: Sequence[str], pattern: str) -> bool:
    names = pattern.split("/")
    return len(names) == len(path) and all(map(fnmatchcase, path, names))


def vanishing(path: Sequence[str], before: Any, value: Any) -> str | None:
    """The text that a report must no longer show; None: this place may not hold this value."""
    for pattern, (empty, shown) in _ABSENT.items():
        if _is_at(path, pattern):
            if type(value) is not type(empty) or value != empty:
                return None
            return shown if isinstance(shown, str) else shown(before)
    return None
