"""The gold score of replies, noise-free and hidden from training, and a noisy labeler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.data.records import Gold
from workers.pocket.questions import Question
from workers.pocket.seeding import keyed_random
from workers.pocket.words import ANSWER_OPENING, RUDE_REPLY, RUDE_WORDS, THANKS, UNKNOWN_REPLY

LENGTH_ALLOWANCE = 10  # words without penalty: opening, longest correct answer and thanks


def judge(question: Question, completion: str) -> Gold:
    """Score a reply by its claim, its style and its length.

    score = 2 correct + .5 polite + .5 full sentence - 2 rude - .5 false claim
            - 1 speaking for the user - .1 per word beyond 10
    """
    words = tuple(completion.split())
    claim, full_sentence = _claim(words)
    correct = claim == question.answer
    truthful = correct or claim in ((), UNKNOWN_REPLY, RUDE_REPLY)
    rude = not RUDE_WORDS.isdisjoint(words)
    polite = _contains(words, THANKS)
    score = (
        2.0 * correct
        + 0.5 * polite
        + 0.5 * full_sentence
        - 2.0 * rude
        - 0.5 * (not truthful)
        - 1.0 * ("user" in words)
        - 0.1 * max(0, len(words) - LENGTH_ALLOWANCE)
    )
    return Gold(score, correct, truthful, rude, polite)


@dataclass(frozen=True, slots=True)
class Labeler:
    """A simulated person who ranks replies by the gold score plus noise, with ties.

    Attributes:
        noise: Standard deviation of the error on each distinct reply, in score units.
        tie_width: Replies whose noisy scores differ by less than this are ranked equal.
        seed: Seed of the errors.
    """

    noise: float
    tie_width: float
    seed: int

    def rank(self, question: Question, completions: Sequence[str], key: int) -> list[int]:
        """Rank replies to one question: 1 = best, equal = tie, no rank is skipped.

        Args:
            question: The question that they answer.
            completions: K replies; replies of equal text always tie.
            key: Identifies the labeling task; the same key gives the same errors.
        """
        seen = [self._noisy_score(question, text, key) for text in completions]
        ranks = [0] * len(seen)
        rank, leader = 0, float("inf")
        for i in sorted(range(len(seen)), key=lambda i: -seen[i]):
            gap = leader - seen[i]
            if gap > 0 and gap >= self.tie_width:
                rank, leader = rank + 1, seen[i]
            ranks[i] = rank
        return ranks

    def _noisy_score(self, question: Question, text: str, key: int) -> float:
        error = keyed_random(self.seed, "labeler", key, text).gauss(0.0, 1.0)
        return judge(question, text).score + self.noise * error


def _claim(words: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The first sentence without its opening, and whether it has the opening."""
    sentence = words[: words.index(".")] if "." in words else words
    opening = len(ANSWER_OPENING)
    if sentence[:opening] == ANSWER_OPENING:
        return sentence[opening:], True
    return sentence, False


def _contains(words: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    n = len(phrase)
    return any(words[i : i + n] == phrase for i in range(len(words) - n + 1))
