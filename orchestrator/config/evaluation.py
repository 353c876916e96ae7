"""Settings of the evaluation: judges, prompts and lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.config.ranges import at_least, fraction, path, positive, seconds, secret, words


class JudgeKind(Enum):
    """The judge that decides which of two responses is preferred in the evaluation."""

    auto = "auto"  # the gold labeler if there is one, else the reward of the run
    none = "none"  # no judge and no win rates
    reward_model = "reward_model"  # judge_checkpoint if set, else the reward model of the run
    function = "function"  # judge_function
    endpoint = "endpoint"  # a chat model behind a URL


@dataclass(slots=True, kw_only=True)
class EndpointConfig:
    """A chat model behind an OpenAI-compatible URL that judges pairs of responses."""

    url: str = secret("")  # up to "/v1"; "/chat/completions" is appended
    model: str = ""  # model name sent with each request
    # environment variable that holds the API key; "" = the endpoint needs no key
    key_variable: str = "OPENAI_API_KEY"
    instruction: str = words("")  # the question, with {prompt}, {first} and {second}
    request: str = words('{"temperature": 0, "max_tokens": 512}')  # JSON merged into every request
    cache: str = path("outputs/judge_cache")  # folder of verdicts; cached pairs are not sent again
    concurrency: int = positive(8, 10_000)  # requests at the same time
    request_seconds: float = seconds(60.0)  # timeout per request
    retries: int = at_least(0, 5)  # per request: after overload, server errors, lost connections
    backoff_seconds: float = seconds(1.0)  # wait before the first retry; doubles, at most 60 s
    deadline_seconds: float = seconds(3600.0)  # for all requests of one evaluation
    # largest fraction of pairs that may be left without a verdict; more end the run
    failed_fraction: float = fraction(0.05)


@dataclass(slots=True, kw_only=True)
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `lm-eval`), run on each evaluated model, offline."""

    tasks: list[str] = field(default_factory=list)  # task names; [] = off
    task_folder: str = path("")  # folder of custom task YAML files; "" = the package's tasks only
    limit: int = at_least(0, 0)  # examples per task; 0 = all
    fewshot: int = at_least(-1, -1)  # examples in the prompt; -1 = the task's default
    batch_size: int = positive(8)  # sequences
    device: str = ""  # torch device; "" = the cluster's accelerator
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
