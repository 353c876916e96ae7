"""Measurements of a reward model, as typed records and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.run_files.damage import require_list


@dataclass(frozen=True, slots=True)
class PairAccuracy:
    """Share of held-out pairs that the reward model orders as the labeler did."""

    accuracy: float
    low: float  # 95 % interval, clustered by prompt
    high: float
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs with similar predicted probability."""

    predicted: float  # mean probability of the model's own choice, in [.5, 1]
    observed: float  # share of the pairs on which the labeler agrees
    low: float  # 95 % interval of `observed`, clustered by prompt
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Predicted probability against observed agreement in bins of equal count."""

    error: float  # expected calibration error: mean |predicted - observed| over pairs
    bins: tuple[CalibrationBin, ...]  # the least sure first


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two annotators give the same verdict on a pair of completions."""

    rate: float
    low: float  # 95 % interval, clustered by prompt
    high: float
    alpha: float | None  # Krippendorff's, nominal; None if all verdicts are equal
    judgements: int  # pairs of completions x pairs of annotators
    prompts: int
    annotators: int


@dataclass(frozen=True, slots=True)
class RewardModelFigures:
    """All measurements of a run's reward model. None or empty = not measured."""

    heldout: PairAccuracy | None = None
    by_source: dict[str, PairAccuracy] = field(default_factory=dict)
    by_completions: dict[int, PairAccuracy] = field(default_factory=dict)  # K -> accuracy
    calibration: Calibration | None = None
    agreement: Agreement | None = None

    def to_json(self) -> dict[str, object]:
        """As plain JSON values; the key names are fixed."""
        all_pairs = _accuracy_json(self.heldout) if self.heldout else dict.fromkeys(_KEYS)
        return {
            **{f"heldout_{_KEYS[key]}": value for key, value in all_pairs.items()},
            "by_source": {name: _accuracy_json(a) for name, a in self.by_source.items()},
            "by_completions": {str(k): _accuracy_json(a) for k, a in self.by_completions.items()},
            "calibration": _calibration_json(self.calibration) if self.calibration else None,
            "annotators": _agreement_json(self.agreement) if self.agreement else None,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RewardModelFigures:
        """The inverse of `to_json`."""
        overall = {key: data[f"heldout_{name}"] for key, name in _KEYS.items()}
        calibration, annotators = data["calibration"], data["annotators"]
        return cls(
            heldout=_accuracy(overall) if any(v is not None for v in overall.values()) else None,
            by_source={name: _accuracy(a) for name, a in data["by_source"].items()},
            by_completions={int(k): _accuracy(a) for k, a in data["by_completions"].items()},
            calibration=_calibration(calibration) if calibration is not None else None,
            agreement=_agreement(annotators) if annotators is not None else None,
        )


# Keys of an accuracy -> their names after "heldout_" for the accuracy over all pairs.
_KEYS = {
    "accuracy": "pair_accuracy",
    "ci95": "pair_accuracy_ci95",
    "pairs": "pairs",
    "prompts": "prompts",
}


def _accuracy_json(found: PairAccuracy) -> dict[str, object]:
    ci95 = [found.low, found.high]
    return dict(zip(_KEYS, (found.accuracy, ci95, found.pairs, found.prompts), strict=True))


def _accuracy(data: dict[str, Any]) -> PairAccuracy:
    low, high = data["ci95"]
    return PairAccuracy(data["accuracy"], low, high, data["pairs"], data["prompts"])


def _calibration_json(found: Calibration) -> dict[str, object]:
    bins = [
        {"predicted": b.predicted, "observed": b.observed, "ci95": [b.low, b.high],
         "pairs": b.pairs}
        for b in found.bins
    ]  # fmt: skip
    return {"error": found.error, "bins": bins}


def _calibration(data: dict[str, Any]) -> Calibration:
    bins = tuple(map(_bin, require_list(data["bins"])))
    if not bins:
        raise ValueError("calibration has no bins")
    return Calibration(data["error"], bins)


def _bin(data: dict[str, Any]) -> CalibrationBin:
    low, high = data["ci95"]
    return CalibrationBin(data["predicted"], data["observed"], low, high, data["pairs"])


def _agreement_json(found: Agreement) -> dict[str, object]:
    fields = asdict(found)
    ci95 = [fields.pop("low"), fields.pop("high")]
    return {"agreement": fields.pop("rate"), "ci95": ci95, **fields}


def _agreement(data: dict[str, Any]) -> Agreement:
    rest = {key: data[key] for key in ("alpha", "judgements", "prompts", "annotators")}
    low, high = data["ci95"]
    return Agreement(data["agreement"], low, high, **rest)
