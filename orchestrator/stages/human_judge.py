"""People as judges: verdicts from `python -m orchestrator.label export`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from orchestrator.results.intervals import WinRate, clustered_rate, preference
from orchestrator.results.summary import EvaluationRow, FlagRate
from workers.data.formats.jsonl_file import scan_jsonl
from workers.data.formats.line import Line
from workers.data.records import Prompt
from workers.data.rows.asked import as_messages
from workers.errors import DataError, DataLineError, EmptyDatasetError

_WHERE = "evaluate.verdicts"
_OTHER_ANSWERS = (
    "judge the answers of this run (RUN/samples/answers.jsonl), with the same models, prompts and "
    "seed; engines that round differently sample other answers"
)


@dataclass(frozen=True, slots=True)
class HumanVerdict:
    """One person's ranking of models' answers to one prompt."""

    where: str  # FILE:LINE
    prompt: str  # `prompt_key`
    texts: dict[str, str]  # model -> answer
    ranks: dict[str, int]  # 1 = best, equal = tie
    likert: dict[str, int]  # 1..7; models without a rating are absent
    flags: dict[str, dict[str, bool]]  # model -> yes/no fields that apply


def read_verdicts(path: str) -> list[HumanVerdict]:
    """The verdicts of a file.

    Raises:
        DataLineError: a line is no ranking of named models.
        EmptyDatasetError: there is none.
    """
    found = []
    for line in scan_jsonl(path):
        if isinstance(line, DataLineError):
            raise line
        found.append(_verdict(line))
    if not found:
        raise EmptyDatasetError("there is no verdict", where=path, fix="let people judge first")
    return found


def prompt_key(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as a key: bare text, or messages."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def key_of(prompt: Prompt) -> str:
    """The key of a prompt of the run, as samples/answers.jsonl holds it."""
    context = prompt.context
    return prompt_key(context if isinstance(context, str) else as_messages(context))


def _verdict(line: Line) -> HumanVerdict:
    models, texts = line.texts("models"), line.texts("completions")
    ranks = [line.optional_rank(r, f"ranks[{i}]") for i, r in enumerate(line.list("ranks"))]
    if not len(models) == len(texts) == len(ranks) or len(set(models)) < len(models):
        line.fail(
            '"models", "completions" and "ranks" must have one entry for each of different models',
            "export the verdicts of a project made by --compare",
        )
    prompt = line.list("messages") if "messages" in line.fields else line.text("prompt")
    return HumanVerdict(
        where=line.where,
        prompt=prompt_key(prompt),  # type: ignore[arg-type]
        texts=dict(zip(models, texts, strict=True)),
        ranks={m: r for m, r in zip(models, ranks, strict=True) if r is not None},
        likert=_likert(line, models),
        flags=_flags(line, models),
    )


def _likert(line: Line, models: Sequence[str]) -> dict[str, int]:
    given = line.list("likert") if line.fields.get("likert") is not None else []
    found = {m: line.optional_rank(v, "likert") for m, v in zip(models, given, strict=False)}
    return {model: value for model, value in found.items() if value is not None}


def _flags(line: Line, models: Sequence[str]) -> dict[str, dict[str, bool]]:
    given = line.list("flags") if line.fields.get("flags") is not None else []
    found: dict[str, dict[str, bool]] = {}
    for model, flags in zip(models, given, strict=False):
        if not isinstance(flags, dict):
            line.fail('"flags" must hold one object for each answer')
        found[model] = {n: v for n, v in flags.items() if isinstance(v, bool)}
    return found


class People:
    """Verdicts on the answers of one run.

    Args:
        verdicts: As read.
        prompts: The prompts of the run.
        answers: Model -> answers in the order of the prompts; other models of the file are ignored.

    Raises:
        DataError: a verdict is on another prompt or answer than this run's.
    """

    def __init__(
        self,
        verdicts: Sequence[HumanVerdict],
        prompts: Sequence[Prompt],
        answers: Mapping[str, Sequence[str]],
    ) -> None:
        numbers: dict[str, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            numbers[key_of(prompt)].append(number)
        self._verdicts = [(_number(v, numbers[v.prompt], answers), v) for v in verdicts]

    def win_rate(self, model: str, over: str) -> WinRate | None:
        """How often `model` is preferred; None if nobody compared the two.

        With one verdict per prompt the interval is that of all other judges; otherwise it is
        clustered by prompt.
        """
        outcomes, prompts = [], []
        for number, verdict in self._verdicts:
            if {model, over} <= verdict.ranks.keys():
                margin = verdict.ranks[over] - verdict.ranks[model]
                outcomes.append((1 + (margin > 0) - (margin < 0)) / 2)
                prompts.append(number)
        if not outcomes:
            return None
        if len(set(prompts)) == len(prompts):
            return preference(outcomes)
        rate = clustered_rate(outcomes, prompts)
        return WinRate(rate.rate, rate.low, rate.high, rate.clusters)

    def rated(self, model: str, row: EvaluationRow) -> EvaluationRow:
        """The row of a model with the mean quality and the rates of the yes/no fields."""
        likert = [v.likert[model] for _, v in self._verdicts if model in v.likert]
        said: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for number, verdict in self._verdicts:
            for name, value in verdict.flags.get(model, {}).items():
                said[name].append((float(value), number))
        return replace(
            row,
            likert_mean=fmean(likert) if likert else None,
            flags={name: _rate(values) for name, values in said.items()},
        )


def _rate(values: Sequence[tuple[float, int]]) -> FlagRate:
    found = clustered_rate([value for value, _ in values], [number for _, number in values])
    return FlagRate(found.rate, found.low, found.high, found.trials)


def _number(
    verdict: HumanVerdict, numbers: Sequence[int], answers: Mapping[str, Sequence[str]]
) -> int:
    """The number of the prompt whose answers were judged; a prompt may occur several times."""
    judged = {model: text for model, text in verdict.texts.items() if model in answers}
    for number in numbers:
        if all(answers[model][number] == text for model, text in judged.items()):
            return number
    what = "answers that are not this run's" if numbers else "a prompt that is not this run's"
    raise DataError(f"a verdict on {what}", where=f"{_WHERE}, {verdict.where}", fix=_OTHER_ANSWERS)
