"""Model card (README.md) of a published folder: origin, data, figures, and how to prompt it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.checkpoints.model_folder import CARD
from orchestrator.config.run import StageName
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.runs.stage_run import StageRun, whole
from orchestrator.results.summary import MODEL_LABELS, EvaluationRow, TaskScore
from workers.data.tables.accounts import SetAccount

if TYPE_CHECKING:
    from orchestrator.session.session import Session

_REWARD_MODEL = "reward_model"
_SCORES = (_REWARD_MODEL, "critic")
_FROM_SFT = (_REWARD_MODEL, "ppo", "ppo_ptx", "dpo", "online_dpo", "rejection_sampling")
_ORIGINS = {"sft": "base", **dict.fromkeys(_FROM_SFT, "sft")}
_FIGURES = {
    "gold_mean": "gold score, mean",
    "web_perplexity": "perplexity of pretraining-style text",
    "truthful_rate": "truthful answers",
    "rude_rate": "rude answers",
    "length_mean": "tokens of an answer, mean",
    "correct_rate": "correct answers",
    "cloze_accuracy": "facts completed",
    "likert_mean": "quality from 1 to 7, by people, mean",
}


@dataclass(frozen=True, slots=True)
class Card:
    """Contents of one model's card."""

    name: str  # base, sft, reward_model, ppo, rejection_sampling, ..., or of a variant
    stages: tuple[str, ...]  # in the order in which they ran; the last one trained the model
    experiment: str
    seed: int
    licence: str  # of the base, from its card; "" = its card names none
    base: str  # name of the folder that the training started from; "" = from scratch
    data: tuple[SetAccount, ...]  # () = the generated pocket world
    pocket: bool
    temperature: float
    max_tokens: int
    figures: tuple[tuple[str, float], ...] = ()
    scores: bool = False  # a variant with a scalar head, which generates no text


def of_session(session: Session, name: str, stage: str) -> Card:
    """The card of the model that a stage has just trained."""
    from orchestrator.session.sources import accounts

    name = name.partition("_step_")[0]  # weights within a stage that are compared
    config, sampling = session.config, session.sampling()
    origin = session.checkpoints.get(_origins(session).get(name, ""), "")
    pairs = session.findings.reward_model.heldout
    figures = (("accuracy on held-out pairs", pairs.accuracy),) if pairs else ()
    return Card(
        name=name,
        stages=(*session.saves.finished, stage),
        experiment=config.experiment,
        seed=config.seed,
        licence=licence_of(Path(origin)) if origin else "",
        base=_base(session, name),
        data=accounts(session.source),
        pocket=config.data.source.value == "pocket",
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        figures=figures if name == _REWARD_MODEL else (),
        scores=session.run is not None and _trains_scores(session.run, name),
    )


def _trains_scores(run: StageRun, name: str) -> bool:
    return run.product == name and run.stage is StageName.reward_model


def _has_head(card: Card) -> bool:
    return card.scores or card.name in _SCORES


def _origins(session: Session) -> dict[str, str]:
    """Name of each model -> that of the one which its training started from."""
    runs = expand(whole(session.config))
    return _ORIGINS | {run.product: run.reads[0] for run in runs if run.variant and run.reads}


def _base(session: Session, name: str) -> str:
    """Name of the given folder that a model derives from; "" if the run trained its base, too."""
    origins = _origins(session)
    while name := origins.get(name, ""):  # some of these folders may have been deleted since
        folder = Path(session.checkpoints.get(name, session.folder.checkpoints / name))
        if folder.parent != session.folder.checkpoints:
            return folder.name
    return ""


def write(folder: Path, card: Card) -> None:
    """Write the card into the model's folder."""
    (folder / CARD).write_text(render(card), encoding="utf-8")


def render(card: Card) -> str:
    """The card as Markdown with a YAML front matter."""
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["rehearsal", "rlhf"]}
    if not _has_head(card):
        head["pipeline_tag"] = "text-generation"
    if card.licence:
        head["license"] = card.licence
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---",
        f"# {MODEL_LABELS.get(card.name, card.name)}",
        _made(card),
        _data(card),
        _figures(card),
        _SCORING if _has_head(card) else _prompting(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def licence_of(folder: Path) -> str:
    """The licence that a checkpoint's card names; "" if it has no card or names none."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        _, head, _ = text.split("---\n", 2) if text.startswith("---\n") else ("", "", "")
        fields = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):  # a bad card must not stop a run
        return ""
    found = fields.get("license") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else ""


def add_evaluation(session: Session) -> None:
    """Add the figures of the evaluation to the cards of the models that this run trained."""
    made = session.folder.checkpoints
    for name, row in session.findings.models.items():
        folder = Path(session.checkpoints.get(name, ""))
        if folder.parent != made:  # given, or the best of n answers of a model
            continue
        card = of_session(session, name, "")
        stages = tuple(stage for stage in card.stages if stage)
        own = next((i for i, stage in enumerate(stages) if _makes(stage, name)), len(stages))
        write(folder, replace(card, stages=stages[: own + 1], figures=_of_row(row)))


def _makes(stage: str, name: str) -> bool:
    return {"pretrain": "base", "pretrain_large": "large"}.get(stage, stage) == name


def _of_row(row: EvaluationRow) -> tuple[tuple[str, float], ...]:
    named = [(label, getattr(row, field)) for field, label in _FIGURES.items()]
    tasks: list[tuple[str, TaskScore]] = [
        (f"{task}, {metric}", score)
        for task, metrics in row.lm_eval.items()
        for metric, score in metrics.items()
    ]
    found = [(label, value) for label, value in named if value is not None]
    return (*found, *((label, score.value) for label, score in tasks))


def _made(card: Card) -> str:
    start = f"Started from `{card.base}`. " if card.base else ""
    stages = ", ".join(f"`{stage}`" for stage in card.stages)
    return (
        f"{start}Trained by Rehearsal with `experiment={card.experiment}` "
        f"and seed {card.seed}. Stages: {stages}."
    )


def _data(card: Card) -> str:
    if card.pocket:
        return "## Data\n\nThe generated pocket world: no text of any person."
    if not card.data:
        return ""
    rows = [
        f"| {each.name} | {each.kind} | {each.train:,} | {each.heldout:,} | {each.tokens:,} |"
        for each in card.data
    ]
    table = "| set | kind | rows trained on | held out | tokens |\n|---|---|---|---|---|\n"
    return "## Data\n\n" + table + "\n".join(rows)


def _figures(card: Card) -> str:
    if not card.figures:
        return ""
    rows = [f"| {label} | {value:.4g} |" for label, value in card.figures]
    return (
        "## Figures\n\nMeasured by the run on its own held-out data.\n\n| figure | value |\n"
        "|---|---|\n" + "\n".join(rows)
    )


def _prompting(card: Card) -> str:
    return f"""## How to prompt it

The tokenizer writes what training saw before a text, and the chat template renders a dialogue as
training did; add no special token by hand. `generation_config.json` holds the sampling of training:
temperature {card.temperature:g}, every token a candidate, at most {card.max_tokens} new tokens,
ended by the tokenizer's end token.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
inputs = tokenizer("PROMPT", return_tensors="pt")
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

A dialogue: `tokenizer.apply_chat_template([{{"role": "user", "content": "..."}}],
add_generation_prompt=True, return_tensors="pt", return_dict=True)` in place of the call of the
tokenizer. As a service: `python -m orchestrator.serve FOLDER`."""


_SCORING = """## How to use it

The score of an answer is the output at the last token (the end token included) of prompt and
answer, encoded as in training:

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForTokenClassification.from_pretrained("FOLDER")
inputs = tokenizer("PROMPT ANSWER" + tokenizer.eos_token, return_tensors="pt")
print(model(**inputs).logits[0, -1, 0].item())
```"""
