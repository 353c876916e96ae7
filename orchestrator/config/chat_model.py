"""Settings of a chat model behind a URL, whatever it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.config.ranges import at_least, fraction, positive, seconds, secret, words
from workers.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class ChatModelConfig:
    """A chat model behind an OpenAI-compatible URL."""

    url: str = secret("")
    """URL up to "/v1"; "/chat/completions" is appended."""
    model: str = ""
    """Model name sent with each request."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; "" = the endpoint needs no key."""
    request: str = words('{"temperature": 0, "max_tokens": 512}')
    """JSON merged into every request."""
    concurrency: int = positive(8, 10_000)
    """Requests at the same time."""
    request_seconds: float = seconds(60.0)
    """Timeout per request."""
    retries: int = at_least(0, 5)
    """Retries per request: after overload, server errors, lost connections."""
    backoff_seconds: float = seconds(1.0)
    """Wait before the first retry; doubles, at most 60 s."""
    deadline_seconds: float = seconds(3600.0)
    """For all requests of one call: an evaluation, or 64 prompts that are labeled or revised."""
    failed_fraction: float = fraction(0.05)
    """Largest fraction of pairs (labels: prompts) left without an answer; more end the run."""


def check_chat_model(settings: ChatModelConfig, where: str, role: str) -> None:
    """Check address, model and request of a chat model that will be asked.

    Args:
        settings: The section.
        where: Its key.
        role: What the model is, for messages.

    Raises:
        ConfigError: one is missing or invalid.
    """
    if not settings.url:
        raise ConfigError(f"the {role} has no address", where=f"{where}.url",
                          fix="write https://HOST/v1")  # fmt: skip
    if not settings.model:
        raise ConfigError(f"no model is named as the {role}", where=f"{where}.model",
                          fix="set it to a model that the endpoint serves")  # fmt: skip
    try:
        request: object = json.loads(settings.request)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise ConfigError("what is sent with every question is no JSON object",
                          where=f"{where}.request", fix="write '{}' to send nothing")  # fmt: skip
