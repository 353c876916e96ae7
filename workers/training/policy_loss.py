"""The policy's loss in PPO and its relatives; `algorithm.policy_loss` names its surrogate.

The surrogate gives each token a loss. `batch_loss` averages it over the tokens of the whole
optimizer step, and adds the KL to the reference if that is part of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.errors import ConfigError, RehearsalError
from workers.extensions.kinds import Kind
from workers.process.user_code import describe
from workers.records.specs import PartSpec, PolicyLossSpec

if TYPE_CHECKING:  # takes a second to import, and the plan of a run reads only what is needed
    from torch import Tensor

    from workers.ops import Clip, ResponseTokens, Surrogate
    from workers.records.training import StepWork

WHERE = "algorithm.policy_loss"


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """How the tokens of a micro-batch become losses."""

    of_tokens: Callable[[ResponseTokens, Clip], Surrogate]

    def __post_init__(self) -> None:
        """Raises TypeError where `of_tokens` is no function, at the user's line."""
        if not callable(self.of_tokens):
            raise TypeError(f"of_tokens is {self.of_tokens!r}: it must be a function")


KIND = Kind("policy loss", PolicyLoss, "workers.training.policy_losses", "LOSS")


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The loss of one micro-batch, as its part of the mean over the step."""

    policy: Tensor  # scalar, the surrogate
    kl: Tensor | None  # scalar, nats: KL to the reference; None if it is not part of the loss
    clipped: Tensor  # (N,) bool


def find_policy_loss(spec: PartSpec) -> PolicyLoss:
    """The policy loss of a name or an import path.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, or it is something else.
    """
    return KIND.find(spec.name, WHERE, spec.folder)


def batch_loss(
    tokens: ResponseTokens,
    reference: Tensor | None,
    weights: Tensor | None,
    loss: PolicyLossSpec,
    step: StepWork,
) -> BatchLoss:
    """The loss of some of a step's sequences, divided by the counts of the whole step.

    With `loss.aggregate`: "tokens": mean over the tokens of the step; "sequences": mean over its
    sequences of the means over their tokens; "constant": sum over the tokens, divided by
    sequences * max_response_tokens, so that a token weighs the same in every batch.

    Args:
        tokens: The response tokens of these sequences.
        reference: (N,) nats, log-probabilities of the reference model; for a KL term only.
        weights: (N,) importance weights; None = 1.
        loss: Surrogate, bounds and averages.
        step: Counts of the whole step.

    Raises:
        ConfigError: the surrogate raises, or returns something else than a loss per token.
    """
    from workers.ops import kl_estimate

    clip_high = loss.clip if loss.clip_high is None else loss.clip_high
    clip = _clip(loss.clip, clip_high, loss.dual_clip)
    surrogate = _surrogate(find_policy_loss(loss.policy_loss), tokens, clip)
    terms = surrogate.terms if weights is None else surrogate.terms * weights
    kl = None
    if reference is not None:
        distance = kl_estimate(tokens.logprobs, reference, loss.kl_estimator)
        kl = _average(distance, tokens, loss, step)
    return BatchLoss(_average(terms, tokens, loss, step), kl, surrogate.clipped)


def try_policy_loss(path: str, folder: str = "") -> None:
    """Import a policy loss and compute it and its gradient for a few made-up tokens.

    Raises:
        ConfigError: it cannot be imported, or returns something else than a loss per token.
    """
    import torch

    from workers.ops import ResponseTokens

    logprobs = torch.tensor([-1.0, -0.5, -2.0], requires_grad=True)
    tokens = ResponseTokens(
        logprobs,
        torch.tensor([-1.1, -0.5, -1.0]),
        torch.tensor([1.0, -1.0, 0.5]),
        torch.tensor([0, 0, 1]),
        torch.tensor([2, 1]),
    )
    surrogate = _surrogate(find_policy_loss(PartSpec(path, folder)), tokens, _clip(0.2, 0.2, None))
    if not surrogate.terms.requires_grad:
        raise _wrong("terms that do not depend on the log-probabilities")


def _clip(low: float, high: float, dual: float | None) -> Clip:
    from workers.ops import Clip

    return Clip(low, high, dual)


def _average(terms: Tensor, tokens: ResponseTokens, loss: PolicyLossSpec, step: StepWork) -> Tensor:
    if loss.aggregate == "tokens":
        return terms.sum() / step.tokens
    if loss.aggregate == "sequences":
        return (terms / tokens.lengths[tokens.sequence]).sum() / step.sequences
    return terms.sum() / (step.sequences * loss.max_response_tokens)


def _surrogate(loss: PolicyLoss, tokens: ResponseTokens, clip: Clip) -> Surrogate:
    import torch

    try:
        found = loss.of_tokens(tokens, clip)
    except RehearsalError:
        raise
    except (Exception, SystemExit) as error:  # a user's loss may raise anything
        raise ConfigError(
            f"the policy loss raised {describe(error)}", where=WHERE, fix="correct the policy loss"
        ) from error
    if not (isinstance(found, tuple) and len(found) == 2):
        raise _wrong(f"{type(found).__name__} instead of Surrogate(terms, clipped)")
    shape = tokens.logprobs.shape
    for part, kind in zip(found, (tokens.logprobs.dtype, torch.bool), strict=True):
        if not isinstance(part, torch.Tensor):
            raise _wrong(f"{type(part).__name__} instead of a tensor")
        if part.shape != shape or part.dtype != kind:
            raise _wrong(
                f"{part.dtype} of shape {tuple(part.shape)} instead of {kind} of {tuple(shape)}"
            )
    return found


def _wrong(returned: str) -> ConfigError:
    return ConfigError(
        f"the policy loss returned {returned}", where=WHERE, fix="correct the policy loss"
    )
