"""Terms of the reward: `reward.terms.NAME`, checked here because Hydra cannot.

A reward of a run without terms is one term without a name, so that all code has terms only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from orchestrator.config.by_name import plain
from orchestrator.config.ranges import check_tree
from workers.data.rows.asked import Asked
from workers.errors import ConfigError, RehearsalError
from workers.extensions.settings import filled
from workers.process.user_code import describe
from workers.scorers.source import WHERE, Needs, RewardSource, find_source, key_of

SECTION = "reward.terms"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """One source of rewards and its weight."""

    name: str  # "" = the only reward of a run without terms
    kind: str
    weight: float  # factor in the reward; 0 = only measured
    own: Mapping[str, Any]  # settings that only this term has
    shared: Mapping[str, Any]  # keys of `reward`, which its source may read too
    folder: str  # first folder of the search for modules of the user

    @property
    def words(self) -> str:
        """How messages call it."""
        return f"{SECTION}.{self.name} ({self.kind})" if self.name else f"{WHERE}={self.kind}"

    @property
    def where(self) -> str:
        """The configuration key of the term."""
        return f"{SECTION}.{self.name}" if self.name else WHERE

    def key(self, setting: str) -> str:
        """The configuration key of a setting of its source."""
        if self.name:
            return f"{SECTION}.{self.name}.{setting}"
        return f"reward.{setting}" if setting in self.shared else key_of(setting)

    def values(self) -> dict[str, Any]:
        """Value of each setting of the source: those of its own, and keys of `reward` by name.

        Raises:
            ConfigError: there is no such source, or a key is in both and the term has no name.
        """
        source = self._source()
        wanted = {each.name for each in dataclasses.fields(source.settings)} & self.shared.keys()
        if not self.name and (both := sorted(wanted & self.own.keys())):
            raise ConfigError(
                f"{key_of(both[0])} is a key of its own",
                where=key_of(both[0]),
                fix=f"set {self.key(both[0])} instead",
            )
        held = {name: self.shared[name] for name in wanted}
        return {**{name: plain(value) for name, value in held.items()}, **self.own}

    def needs(self) -> Needs:
        """What the source needs from the run.

        Raises:
            ConfigError: there is no such source, or its settings are wrong.
        """
        source = self._source()
        values = self.values()
        section = f"{SECTION}.{self.name}" if self.name else "reward.settings"
        try:
            record = filled(source.settings, values, self.key)
            check_tree(record, section)
            needs = source.needs(record)
        except RehearsalError:
            raise
        except (Exception, SystemExit) as error:  # a user's source may raise anything
            raise ConfigError(
                f"the reward source {self.kind} refused its settings with {describe(error)}",
                where=section,
                fix=f"correct {section}, or the source",
            ) from error
        if not isinstance(needs, Needs):
            raise ConfigError(
                f"`needs` of the reward source {self.kind} returned {type(needs).__name__}",
                where=WHERE,
                fix="let it return an object of workers.scorers.source.Needs",
            )
        return self._renamed(needs)

    def refused(self, asked: Sequence[Asked]) -> list[str]:
        """Per prompt why its source can score no response to it, "" = it can."""
        source = self._source()
        if source.refuses is None:
            return [""] * len(asked)
        return source.refuses(filled(source.settings, self.values(), self.key), asked)

    def _renamed(self, needs: Needs) -> Needs:
        """The same, with this term's keys in place of those of a reward without terms."""
        where = needs.seconds_where
        if self.name or "." not in where:
            where = self.key(where.rpartition(".")[2])
        if not self.name:
            return dataclasses.replace(needs, seconds_where=where)
        code = tuple(
            dataclasses.replace(each, where=self.key(each.where.rpartition(".")[2]))
            for each in needs.code
        )
        return dataclasses.replace(needs, code=code, seconds_where=where)

    def _source(self) -> RewardSource[Any]:
        where = f"{SECTION}.{self.name}.kind" if self.name else WHERE
        return find_source(self.kind, self.folder, where)


def parse_terms(
    given: Mapping[str, Any], shared: Mapping[str, Any], folder: str
) -> tuple[RewardTerm, ...]:
    """The terms of a configuration, in its order.

    Raises:
        ConfigError: a term has no kind, an impossible name or weight, or all weights are 0.
    """
    terms = tuple(_term(str(name), each, shared, folder) for name, each in given.items())
    if terms and not any(term.weight for term in terms):
        raise ConfigError(
            "every term has the weight 0, so there is no reward",
            where=SECTION,
            fix="give at least one term another weight",
        )
    return terms


def _term(name: str, given: object, shared: Mapping[str, Any], folder: str) -> RewardTerm:
    where = f"{SECTION}.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} cannot name a term",
            where=SECTION,
            fix="use up to 64 letters, digits, _ and -, a letter first",
        )
    if not isinstance(given, Mapping):
        raise ConfigError(f"{given!r:.80} is no term", where=where, fix=f"set {where}.kind=KIND")
    values = {str(key): value for key, value in given.items()}
    for of_run in ("bridge", "micro_batch_tokens"):
        if of_run in values:
            raise ConfigError(
                f"{of_run} is a key of the whole reward",
                where=f"{where}.{of_run}",
                fix=f"set reward.{of_run}",
            )
    kind, weight = values.pop("kind", ""), values.pop("weight", 1.0)
    if not kind or not isinstance(kind, str):
        raise ConfigError("no kind is set", where=f"{where}.kind", fix=f"set {where}.kind=verifier")
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or abs(weight) > 1e6:
        raise ConfigError(
            f"weight={weight!r:.40} must be a finite number of at most a million",
            where=f"{where}.weight",
            fix="give the factor of this term in the reward; 0 only measures it",
        )
    return RewardTerm(name, kind, float(weight), values, shared, folder)


def joined_needs(needs: list[Needs]) -> Needs:
    """What several terms need together; they score at the same time."""
    slowest = max(needs, key=lambda each: each.seconds)
    return Needs(
        text=any(each.text for each in needs),
        model=any(each.model for each in needs),
        gpu=any(each.gpu for each in needs),
        secrets=tuple(dict.fromkeys(name for each in needs for name in each.secrets)),
        seconds=slowest.seconds,
        seconds_where=slowest.seconds_where,
        code=tuple(code for each in needs for code in each.code),
        columns=tuple(dict.fromkeys(name for each in needs for name in each.columns)),
        waits=any(each.waits for each in needs),
    )


def require_columns(terms: tuple[RewardTerm, ...], kept: Set[str]) -> None:
    """Check that the columns that terms read are kept with each prompt.

    Raises:
        ConfigError: names the term and the column.
    """
    for term in terms:
        if missing := [name for name in term.needs().columns if name not in kept]:
            both = ",".join(dict.fromkeys([*sorted(kept), *missing]))
            raise ConfigError(
                f"{term.words} reads the column {missing[0]!r} of the prompt's row, which is not "
                "kept",
                where="data.keep_columns",
                fix=f"set data.keep_columns=[{both}]",
            )
