"""Settings of the evaluation: judges, prompts and lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, fraction, path, positive, seconds, secret, words


class JudgeKind(Enum):
    """Who decides which of two answers is preferred in the evaluation."""

    auto = "auto"  # the gold labeler where there is one, else the reward of the run
    none = "none"  # nobody: no win rates
    reward_model = "reward_model"  # judge_checkpoint, or the reward model of the run
    function = "function"  # judge_function
    endpoint = "endpoint"  # a chat model behind a URL


@dataclass(slots=True, kw_only=True)
class EndpointConfig:
    """A chat model behind an OpenAI-compatible URL that judges pairs of answers."""

    url: str = secret("")  # up to "/v1"; "/chat/completions" is added
    model: str = ""
    # environment variable that holds the key; "" = the endpoint asks for none
    key_variable: str = "OPENAI_API_KEY"
    instruction: str = words("")  # the question, with {prompt}, {first} and {second}
    request: str = words('{"temperature": 0, "max_tokens": 512}')  # JSON, sent with every question
    cache: str = path("outputs/judge_cache")  # folder of verdicts; what it holds is not asked again
    concurrency: int = positive(8, 10_000)  # questions at a time
    request_seconds: float = seconds(60.0)  # deadline of one answer
    retries: int = at_least(0, 5)  # after overload, server errors and broken connections
    backoff_seconds: float = seconds(1.0)  # before the first retry; doubles, at most a minute
    deadline_seconds: float = seconds(3600.0)  # for all questions of an evaluation
    # pairs without a verdict that are left out; more end the run
    failed_fraction: float = fraction(0.05)


@dataclass(slots=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `lm-eval`), run on each evaluated model, offline."""

    tasks: list[str] = field(default_factory=list)  # none = off
    task_folder: str = path("")  # YAML of your own tasks; "" = those of the package
    limit: int = at_least(0, 0)  # examples a task; 0 = all
    fewshot: int = at_least(-1, -1)  # examples in the prompt; -1 = as the task says
    batch_size: int = positive(8)  # sequences
    device: str = ""  # torch device; "" = that of the cluster
    deadline_seconds: float = seconds(7200.0)  # for all models together


@dataclass(slots=True, kw_only=True)
class EvaluateConfig:
    """Final comparison of all models of the run."""

    prompts: int = positive(1024)
    web_documents: int = positive(512)
    cloze_tasks: int = positive(256)
    samples_shown: int = positive(3)
    judge: JudgeKind = JudgeKind.auto
    judge_function: str = ""  # "package.module:callable" (prompts, a, b) -> list of 1, .5 or 0
    judge_checkpoint: str = path("")  # a reward model that PPO did not optimise
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
