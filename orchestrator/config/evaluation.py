"""Settings of the evaluation: judges, prompts and lm-evaluation-harness."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.chat_model import ChatModelConfig
from orchestrator.config.ranges import (
    at_least,
    between,
    path,
    positive,
    seconds,
    words,
)
from workers.errors import ConfigError

# Models that generate text: names of model.checkpoints.
COLLECTED = ("base", "large", "sft", "ppo", "ppo_ptx", "dpo", "rejection_sampling")


MOST_SAMPLES = 4096  # per prompt, of which the best is evaluated


class JudgeKind(Enum):
    """The judge that decides which of two responses is preferred in the evaluation."""

    auto = "auto"
    """The gold labeler if there is one, else the reward of the run."""
    none = "none"
    """No judge and no win rates."""
    reward_model = "reward_model"
    """judge_checkpoint if set, else the reward model of the run."""
    function = "function"
    """The function that judge_function names."""
    endpoint = "endpoint"
    """A chat model behind a URL."""
    human = "human"
    """People, whose verdicts are in a file."""


@dataclass(slots=True, kw_only=True)
class EndpointConfig(ChatModelConfig):
    """A chat model behind an OpenAI-compatible URL that judges pairs of responses."""

    instruction: str = words("")
    """The question, with {prompt}, {first} and {second}."""
    cache: str = path("outputs/judge_cache")
    """Folder of verdicts; cached pairs are not sent again."""


@dataclass(slots=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `lm-eval`), run on each evaluated model, offline."""

    tasks: list[str] = field(default_factory=list)
    """Task names; [] = off."""
    task_folder: str = path("")
    """Folder of custom task YAML files; "" = the package's tasks only."""
    limit: int = at_least(0, 0)
    """Examples per task; 0 = all."""
    fewshot: int = at_least(-1, -1)
    """Examples in the prompt; -1 = the task's default."""
    batch_size: int = positive(8)
    """Sequences per batch."""
    device: str = ""
    """Torch device; "" = the cluster's accelerator."""
    deadline_seconds: float = seconds(7200.0)
    """For all models together."""


@dataclass(slots=True, kw_only=True)
class CollectConfig:
    """Answers that are sampled for people to rank."""

    prompts: int = positive(256)
    """Prompts; of a smaller data set each once."""
    min_completions: int = between(2, 4, 9)
    """Smallest number K of answers; K is drawn per prompt from [min, max]."""
    max_completions: int = between(2, 9, 9)
    """Largest K."""
    models: list[str] = field(default_factory=lambda: ["sft"])
    """Models that answer: names of model.checkpoints."""
    shares: list[float] = field(default_factory=list)
    """Share of the answers from each model, in any unit; [] = equal."""
    temperature: float = positive(1.0)
    """Sampling temperature."""

    def check(self, key: str) -> None:
        """Check the models, their shares, and that min_completions <= max_completions."""
        if self.min_completions > self.max_completions:
            raise ConfigError(
                f"min_completions={self.min_completions}, max_completions={self.max_completions}",
                where=f"{key}.min_completions",
                fix="choose 2 <= min_completions <= max_completions <= 9",
            )
        wrong = [name for name in self.models if name not in COLLECTED]
        if wrong or not self.models or len(set(self.models)) < len(self.models):
            raise ConfigError(
                f"models={self.models}",
                where=f"{key}.models",
                fix=f"name each model once, of {', '.join(COLLECTED)}",
            )
        if self.shares and (
            len(self.shares) != len(self.models) or not all(0 < s < math.inf for s in self.shares)
        ):
            raise ConfigError(
                f"shares={self.shares} of {len(self.models)} models",
                where=f"{key}.shares",
                fix="give one number above 0 per model, or []",
            )


@dataclass(slots=True, kw_only=True)
class EvaluateConfig:
    """Final comparison of all models of the run."""

    prompts: int = positive(1024)
    """Prompts that each evaluated model answers."""
    web_documents: int = positive(512)
    """Held-out documents for the loss on pretraining text."""
    cloze_tasks: int = positive(256)
    """Cloze questions of the pocket world per model."""
    samples_shown: int = positive(3)
    """Prompts whose answers the report shows; without the stage evaluate, held-out demonstrations
    beside SFT's answers, and held-out rankings with the reward model's scores."""
    best_of: list[int] = field(default_factory=list)
    """Also evaluate the best of n answers of the SFT model by the reward, for each of these n;
    [] = off."""
    few_shot: int = at_least(0, 0, 32)
    """Base models answer a second time, after this many demonstrations (pocket world); 0 = off."""
    judge: JudgeKind = JudgeKind.auto
    """What compares two answers for the win rates."""
    judge_function: str = ""
    """The function as package.module:callable, (prompts, a, b) -> list of 1, .5 or 0."""
    judge_checkpoint: str = path("")
    """A reward model that PPO did not optimise."""
    verdicts: str = path("")
    """Verdicts of people on this run's answers, exported by orchestrator.label (judge: human)."""
    answers: str = path("")
    """samples/answers.jsonl of an earlier evaluation of the same models and prompts: its answers
    are judged, and no others sampled (judge: human, function, endpoint or none)."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The chat model behind a URL (judge: endpoint)."""
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    """Tasks of EleutherAI's lm-evaluation-harness (extra `lm-eval`)."""

    @property
    def judging_model(self) -> str:
        """The folder of the judge, if it is a given reward model; else ""."""
        return self.judge_checkpoint if self.judge is JudgeKind.reward_model else ""

    def check(self, key: str) -> None:
        """Check the numbers of `best_of`, and that prompted models can answer."""
        if self.few_shot and self.answers:
            raise ConfigError(
                "answers of an earlier evaluation are judged; prompted base models would answer",
                where=f"{key}.few_shot",
                fix=f"set it to 0, or leave {key}.answers out",
            )
        if not all(1 <= n <= MOST_SAMPLES for n in self.best_of):
            raise ConfigError(
                f"best_of={self.best_of}",
                where=f"{key}.best_of",
                fix=f"give numbers from 1 to {MOST_SAMPLES:,}",
            )
