"""What an advantage estimator declares and computes; `algorithm.advantage` names one.

An estimator computes in two places. The sequences of one prompt may lie on different ranks, so
whatever compares them is computed by the driver (`of_sequences`), from one number per sequence, and
sent to the ranks as one number per sequence. Tokens stay on the ranks (`of_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from workers.errors import ConfigError, RehearsalError
from workers.extensions.kinds import Kind
from workers.process.user_code import describe
from workers.records.specs import PartSpec

if TYPE_CHECKING:  # takes a second to import, and the plan of a run reads only what is needed
    from torch import Tensor

T = TypeVar("T")

WHERE = "algorithm.advantage"


@dataclass(frozen=True, slots=True)
class Sequences:
    """The sequences of one iteration, as the driver knows them."""

    group: Tensor  # (B,) int64, 0 to G - 1; the sequences of one prompt have the same number
    scores: Tensor  # (B,) fp64, reward units; the penalty for cut responses is deducted
    kl: Tensor  # (B,) fp64, nats: log(policy / reference), summed over the tokens
    lengths: Tensor  # (B,) int64, response tokens
    kl_coefficient: float  # reward units per nat

    @property
    def returns(self) -> Tensor:
        """(B,) reward units: the sum of each sequence's token rewards."""
        return self.scores - self.kl_coefficient * self.kl


@dataclass(frozen=True, slots=True)
class Tokens:
    """The response tokens of one rank's sequences, padded on the right."""

    rewards: Tensor  # (B, T) fp64, reward units: KL penalty, and the score on the last token
    mask: Tensor  # (B, T) bool; True = response token
    log_ratio: Tensor  # (B, T) fp64, nats: log(policy / reference), before the first update
    values: Tensor | None  # (B, T) fp64, reward units, before each token; None without a critic
    sequence: Tensor | None  # (B,) fp64, what `of_sequences` computed; None without it
    gamma: float
    lam: float


def on_every_token(tokens: Tokens) -> tuple[Tensor, None]:
    """The number of a sequence as the advantage of each of its tokens; no returns."""
    if tokens.sequence is None:
        raise TypeError("it has no of_sequences, so it needs of_tokens")
    return tokens.sequence.unsqueeze(1).expand(tokens.mask.shape), None


@dataclass(frozen=True, slots=True)
class Estimator:
    """How the advantages of PPO are computed, and what that takes."""

    # On the driver: (B,) one number per sequence, which `of_tokens` finds in `Tokens.sequence`.
    of_sequences: Callable[[Sequences], Tensor] | None = None
    # On the ranks: (B, T) advantages, and (B, T) returns for the critic to fit, or None without.
    of_tokens: Callable[[Tokens], tuple[Tensor, Tensor | None]] = on_every_token
    needs_values: bool = False  # those of a critic; without, the run has no critic
    # Least sequences of a prompt that have a reward; those of a prompt with fewer are dropped.
    needs_samples: int = 1
    needs_reward: bool = True  # without, the run has no reward role, and every score is 0
    needs_teacher: bool = False  # the reference is `model.checkpoints.teacher`, not the SFT model
    whitens: bool = True  # the batch's advantages, if `algorithm.whiten_advantages` allows it

    def __post_init__(self) -> None:
        """Raises TypeError where a field is something else, at the user's line."""
        if not (self.of_sequences is None or callable(self.of_sequences)):
            raise TypeError(f"of_sequences is {self.of_sequences!r}: it must be a function")
        if not callable(self.of_tokens):
            raise TypeError(f"of_tokens is {self.of_tokens!r}: it must be a function")
        for name in ("needs_values", "needs_reward", "needs_teacher", "whitens"):
            if type(found := getattr(self, name)) is not bool:
                raise TypeError(f"{name} is {found!r}: it must be True or False")
        if type(self.needs_samples) is not int or not 1 <= self.needs_samples <= 2**20:
            raise TypeError(f"needs_samples is {self.needs_samples!r}: it must be 1, 2, ...")


KIND = Kind("advantage estimator", Estimator, "workers.training.estimators", "ESTIMATOR")


def find_estimator(spec: PartSpec) -> Estimator:
    """The estimator of a name or an import path.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, or it is something else.
    """
    return KIND.find(spec.name, WHERE, spec.folder)


def sequence_numbers(estimator: Estimator, sequences: Sequences) -> Tensor:
    """(B,) fp64, what `of_sequences` computes.

    Raises:
        ConfigError: it raises, or returns something else than one finite number per sequence.
    """
    assert estimator.of_sequences is not None
    found = _called(estimator.of_sequences, sequences)
    return _required(found, "of_sequences", tuple(sequences.scores.shape))


def token_advantages(estimator: Estimator, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """(B, T) advantages and returns, 0 at masked positions; returns are None without values.

    Raises:
        ConfigError: the estimator raises, or returns something else.
    """
    # theirs may change in place
    rewards, ratio, mask = tokens.rewards.clone(), tokens.log_ratio.clone(), tokens.mask.clone()
    given = replace(tokens, rewards=rewards, log_ratio=ratio, mask=mask)
    pair = _called(estimator.of_tokens, given)
    if not (isinstance(pair, tuple) and len(pair) == 2):
        raise _wrong("of_tokens", f"{type(pair).__name__} instead of (advantages, returns)")
    found, returns = pair
    advantages = _masked(_required(found, "of_tokens", tuple(mask.shape)), tokens)
    if estimator.needs_values:
        returns = _required(returns, "of_tokens (returns)", tuple(mask.shape))
        return advantages, _masked(returns, tokens)
    if returns is not None:
        raise _wrong("of_tokens", "returns, but without needs_values there is no critic")
    return advantages, None


def try_estimator(path: str, folder: str = "") -> None:
    """Import an estimator and compute the advantages of a few made-up sequences.

    Raises:
        ConfigError: it cannot be imported, or returns something else than advantages.
    """
    import torch

    estimator = find_estimator(PartSpec(path, folder))
    samples = max(2, estimator.needs_samples)
    group = torch.arange(2).repeat_interleave(samples)
    scores = torch.linspace(-1.0, 2.0, 2 * samples, dtype=torch.float64)
    lengths = 1 + torch.arange(2 * samples) % 3
    sequences = Sequences(group, scores, scores.abs(), lengths, 0.1)
    numbers = sequence_numbers(estimator, sequences) if estimator.of_sequences else None
    mask = torch.arange(3) < lengths.unsqueeze(1)
    rewards = torch.where(mask, scores.unsqueeze(1), 0.0)
    values = 0.5 * rewards if estimator.needs_values else None
    token_advantages(estimator, Tokens(rewards, mask, 0.1 * rewards, values, numbers, 1.0, 0.95))


def _called(function: Callable[[Any], T], argument: object) -> T:
    try:
        return function(argument)
    except RehearsalError:
        raise
    except (Exception, SystemExit) as error:  # a user's estimator may raise anything
        raise ConfigError(
            f"the estimator raised {describe(error)}", where=WHERE, fix="correct the estimator"
        ) from error


def _required(found: object, what: str, shape: tuple[int, ...]) -> Tensor:
    import torch

    if not isinstance(found, torch.Tensor):
        raise _wrong(what, f"{type(found).__name__} instead of a tensor")
    if tuple(found.shape) != shape:
        raise _wrong(what, f"a tensor of shape {tuple(found.shape)} instead of {shape}")
    if found.is_complex() or found.is_meta:
        raise _wrong(what, f"a tensor of type {found.dtype} on {found.device}")
    if not bool(torch.isfinite(found).all()):
        raise _wrong(what, "NaN or infinity")
    return found.detach().to("cpu", torch.float64)


def _wrong(what: str, returned: str) -> ConfigError:
    return ConfigError(f"{what} returned {returned}", where=WHERE, fix="correct the estimator")


def _masked(x: Tensor, tokens: Tokens) -> Tensor:
    return x.where(tokens.mask, 0.0)
