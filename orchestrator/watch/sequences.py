"""What can be asked of the recorded sequences: filters, orders, and the records that answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

from orchestrator.run_files.samples import Answered, RolloutSample
from workers.data.rows.asked import plain_text

PAGE = 25  # sequences per page
_LONGEST = 200  # characters of a value in an address
ANY_DROP, TRAINED = "*", "-"  # values of the filter `dropped` that are no reason
#: Orders: key -> name for people, SQL. What was not measured comes last.
ORDERS: dict[str, tuple[str, str]] = {
    "new": ("newest first", "id DESC"),
    "old": ("oldest first", "id"),
    "best": ("highest reward first", "reward IS NULL, reward DESC, id"),
    "worst": ("lowest reward first", "reward IS NULL, reward, id"),
    "kl": ("largest KL first", "kl IS NULL, kl DESC, id"),
    "long": ("longest first", "length DESC, id"),
    "short": ("shortest first", "length, id"),
}


@dataclass(frozen=True, slots=True)
class Sequence:
    """One recorded response: of a PPO iteration, or of a model in the evaluation."""

    stage: str
    step: int | None  # iteration; None: evaluation
    number: int  # id of the sequence in the run, or of the prompt in the evaluation
    version: str  # policy version, or name of the model
    prompt: str
    response: str
    reward: float | None  # before the KL penalty; None: failed, or not measured
    kl: float | None  # nats, whole sequence
    length: int  # tokens, or characters where tokens were not recorded
    in_tokens: bool
    finish: str
    dropped: str  # "" = trained on, or not part of training
    terms: str = ""  # values of the reward's terms, for people; "" = none were recorded

    @classmethod
    def of_rollout(cls, sample: RolloutSample) -> Sequence:
        """A sample of a PPO iteration."""
        known = sample.tokens is not None
        return cls(
            sample.stage, sample.step, sample.id, str(sample.policy_version), sample.prompt,
            sample.response, _finite(sample.score), _finite(sample.kl),
            sample.tokens if sample.tokens is not None else len(sample.response), known,
            sample.finish, sample.dropped, _terms(sample.terms),
        )  # fmt: skip

    @classmethod
    def of_answers(cls, line: Answered) -> list[Sequence]:
        """The answers of all models to one prompt of the evaluation."""
        prompt = plain_text(line.prompt)
        return [
            cls("evaluate", None, line.id, model, prompt, text, None, None, len(text), False, "",
                "")
            for model, text in line.answers.items()
        ]  # fmt: skip


def prompt_key(prompt: str) -> int:
    """A prompt as a number of 63 bits: those of a million prompts differ but for one in 10^7."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _terms(values: Mapping[str, float | None]) -> str:
    shown = ((n, "failed" if v is None else f"{v:.4g}") for n, v in values.items())
    return ", ".join(f"{name} {value}" for name, value in shown)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sequences are wanted, and in which order. None and "" do not restrict."""

    text: str = ""  # in prompt or response, upper and lower case alike
    stage: str = ""
    version: str = ""
    finish: str = ""
    dropped: str = ""  # a reason, ANY_DROP or TRAINED
    step_from: float | None = None
    step_to: float | None = None
    reward_from: float | None = None
    reward_to: float | None = None
    kl_from: float | None = None
    kl_to: float | None = None
    length_from: float | None = None
    length_to: float | None = None
    order: str = "new"
    page: int = 1

    def query(self, page: int) -> str:
        """This filter as the query of an address, for another page of its result."""
        wanted = replace(self, page=page)
        pairs = [(f.name, getattr(wanted, f.name), f.default) for f in fields(wanted)]
        return urlencode({name: _plain(v) for name, v, default in pairs if v != default})


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_filter(given: Mapping[str, str]) -> tuple[Filter, list[str]]:
    """The filter in the query of an address, and a sentence for each part that is ignored."""
    read: dict[str, object] = {}
    ignored: list[str] = []
    for field in fields(Filter):
        value = given.get(field.name, "").strip()
        if not value:
            continue
        if field.name in ("text", "stage", "version", "finish", "dropped"):
            read[field.name] = value
            continue
        found = _number(value) if field.name != "order" else value if value in ORDERS else None
        if field.name == "page":
            found = min(int(found), 10**9) if isinstance(found, float) and found >= 1 else None
        if found is None:
            ignored.append(f"{field.name} is ignored: {value[:_LONGEST]!r} cannot be used")
        else:
            read[field.name] = found
    return Filter(**read), ignored  # type: ignore[arg-type]


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
