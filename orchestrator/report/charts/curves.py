"""Which curves of a run belong together, and how they look: for plots and the live view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from orchestrator.results.best_of import parts_of
from orchestrator.results.few_shot import prompted_parts
from orchestrator.results.summary import MODEL_LABELS, model_label

COLORS = {
    "base": "#8c8f98",
    "large": "#5b5f6b",
    "teacher": "#c9a227",
    "sft": "#3b6fb6",
    "ppo": "#e07b39",
    "ppo_ptx": "#2f9e6e",
    "dpo": "#b8336a",
    "online_dpo": "#d17fa3",
    "rejection_sampling": "#a6761d",
    "pretrain": "#8c8f98",
    "pretrain_large": "#5b5f6b",
    "reward_model": "#8a56ac",
}
# Of models and stages that have no colour above, in their order.
_FURTHER = ("#c9a227", "#1b9aaa", "#7d5a50", "#6a8532", "#d1495b", "#4f5d95", "#a0568b", "#3d8a7d")
_LINES = ("-", "--", "-.", ":")
STAGE_LABELS = {**MODEL_LABELS, "reward_model": "reward model"}
INK, PALE = "#24292f", "#d8dee4"
#: Stages that sample, with their line styles.
ONLINE = {"ppo": "-", "ppo_ptx": "--", "online_dpo": "-."}

_TERM = "ppo/reward/"

#: One curve: stage, metric, label, colour, line style.
Curve = tuple[str, str, str, str, str]
#: Panels: title and curves.
Panels = list[tuple[str, list[Curve]]]


def further(names: Iterable[str]) -> list[str]:
    """The stage runs and models that are none of the recipe's, each once and in order."""
    return [name for name in dict.fromkeys(names) if name not in COLORS]


def color_of(name: str, others: Sequence[str]) -> str:
    """The colour of a stage or model; `others`: see `further`."""
    if name in others and name not in STAGE_LABELS:
        return _FURTHER[others.index(name) % len(_FURTHER)]
    return COLORS.get(parts_of(prompted_parts(name)[0])[0], INK)


def label_of(name: str) -> str:
    """How a stage or model is called."""
    of_model = parts_of(name)[1] or prompted_parts(name)[1]
    known = STAGE_LABELS.get(name) or (model_label(name) if of_model else None)
    return known or name.replace("_", " ")


def terms_of(metrics: Iterable[str]) -> list[str]:
    """Names of the reward's terms that metrics are about, each once and in order."""
    found = (name.removeprefix(_TERM) for name in metrics if name.startswith(_TERM))
    return list(dict.fromkeys(found))


def groups(others: Sequence[str], terms: Sequence[str] = ()) -> dict[str, Panels]:
    """The panels of each group of curves.

    Args:
        others: Stage runs that are none of the recipe's (`further`): each has a curve of its own.
        terms: Terms of the reward (`terms_of`): each has a panel of its own.
    """

    def of_others(metric: str) -> list[Curve]:
        return [
            (name, metric, label_of(name), color_of(name, others), _LINES[-n % len(_LINES)])
            for n, name in enumerate(others, 2)
        ]

    def ppo(metric: str) -> list[Curve]:
        # Dashes keep curves apart where they coincide, and for eyes that see no colour difference.
        recipe = [
            (stage, f"ppo/{metric}", STAGE_LABELS[stage], COLORS[stage], line)
            for stage, line in ONLINE.items()
        ]
        return [*recipe, *of_others(f"ppo/{metric}")]

    def trained(stage: str, heldout: str) -> list[Curve]:
        return [
            (stage, f"{stage}/loss", "training", COLORS[stage], "-"),
            (stage, f"{stage}/{heldout}", "held out", INK, "o"),
            *of_others(f"{stage}/loss"),
        ]

    return {
        "Reward and KL": [
            ("Score of the reward", ppo("score_mean")),
            ("KL to the reference", ppo("kl_sequence")),
            ("Score minus KL penalty", ppo("shaped_return")),
        ],
        "Terms of the reward": [(f"Reward, term {name}", ppo(f"reward/{name}")) for name in terms],
        "Gold score": [
            ("Gold score, held-out prompts", ppo("gold_mean")),
            ("Reward, held-out prompts", ppo("heldout_score_mean")),
            ("Truthful responses", ppo("gold_truthful_rate")),
            ("Rude responses", ppo("gold_rude_rate")),
        ],
        "Reward model": _reward_model(of_others("reward_model/pair_accuracy")),
        "Losses": [
            ("Pretraining", [*_PRETRAINING, *of_others("pretrain/loss")]),
            ("SFT", trained("sft", "validation_loss")),
            ("Reward model", trained("reward_model", "heldout_loss")),
            ("PPO: policy loss", ppo("policy_loss")),
            ("PPO: value loss", ppo("value_loss")),
            ("PPO-ptx: pretraining text", ppo("ptx_loss")),
        ],
        "Responses": [
            ("Response length", ppo("response_tokens_mean")),
            ("Responses that ended by themselves", ppo("eos_rate")),
            ("Entropy of the policy", ppo("entropy")),
            ("Turns of the policy in a sequence", ppo("turns_mean")),
        ],
        "Health": [
            ("Engine and trainer after a weight sync", ppo("parity_max")),
            ("Clipped tokens", ppo("clip_fraction")),
            ("Variance explained by the critic", ppo("explained_variance")),
        ],
    }


_PRETRAINING: list[Curve] = [
    ("pretrain", "pretrain/loss", "base", COLORS["base"], "-"),
    ("pretrain_large", "pretrain/loss", "large base", COLORS["large"], "--"),
]


def _reward_model(accuracy_of_others: list[Curve]) -> Panels:
    stage = "reward_model"
    color = COLORS[stage]
    return [
        (
            "Reward model: pairs ordered as the labeler did",
            [
                (stage, "reward_model/pair_accuracy", "training step", color, "-"),
                (stage, "reward_model/heldout_pair_accuracy", "held out", INK, "o"),
                *accuracy_of_others,
            ],
        ),
        (
            "Pairs in a step",
            [
                (stage, "reward_model/pairs_kept", "ordered", color, "-"),
                (stage, "reward_model/pairs_tied", "tied, left out", COLORS["base"], "--"),
            ],
        ),
    ]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the `window` values around each position, of fewer at both ends; NaN near a NaN."""
    means: list[float] = []
    for i in range(len(values)):
        near = values[max(0, i - window // 2) : i + window // 2 + 1]
        finite = all(map(math.isfinite, near))
        means.append(math.fsum(near) / len(near) if finite else math.nan)
    return means
