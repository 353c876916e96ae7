"""Rounds as variants: what `iterate` adds to `stages` and `variants` of a run.

It is done once, when the configuration is composed; from then on a round is made of variants like
any other. What config.yaml keeps is the result, of which the same is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.rounds.iterate import (
    MOST_ROUNDS,
    POLICY,
    From,
    IterateConfig,
    Rankings,
)
from orchestrator.config.run import StageName
from orchestrator.config.variants import flat_keys, nearest, stage_of
from workers.errors import ConfigError

_WHERE = "iterate.stages"
_POLICIES = (
    StageName.ppo, StageName.ppo_ptx, StageName.dpo, StageName.online_dpo,
    StageName.rejection_sampling,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Repeated:
    """The stage runs of the first round, by what they are for."""

    names: tuple[str, ...]
    label: str
    reward_model: str  # "" = the policy learns from the rankings themselves
    policy: str


def with_rounds(
    stages: Sequence[str], variants: Mapping[str, Any], iterate: IterateConfig
) -> tuple[list[str], dict[str, Any]]:
    """Stages and variants of the run with those of its rounds.

    Args:
        stages: Of the run, with or without its later rounds.
        variants: Of the run. What is given of a round's variant goes over what is made here.
        iterate: How often what is run.

    Raises:
        ConfigError: `iterate.stages` are no stages that follow each other, or no labels and policy.
    """
    names = list(stages)
    if iterate.rounds == 1:
        return names, dict(variants)
    repeated = _repeated(names, variants, iterate)
    later = [named(name, r) for r in range(2, iterate.rounds + 1) for name in repeated.names]
    beyond = _beyond(names, repeated, iterate.rounds)
    first = [name for name in names if name not in (*later, *beyond)]
    at = first.index(repeated.names[-1]) + 1
    made = {
        named(name, r): _variant(name, r, repeated, variants, iterate)
        for r in range(2, iterate.rounds + 1)
        for name in repeated.names
    }
    over = {name: _over(made.get(name, {}), given) for name, given in variants.items()}
    return [*first[:at], *later, *first[at:]], {**made, **over}


def _beyond(names: Sequence[str], repeated: _Repeated, rounds: int) -> list[str]:
    """The stage runs of rounds that an earlier command had and this one has not."""
    blocks = [[named(each, r) for each in repeated.names] for r in range(rounds + 1, MOST_ROUNDS)]
    return [name for block in blocks if {*block} <= {*names} for name in block]


def named(name: str, number: int) -> str:
    """The name of a stage run in a round."""
    return name if number == 1 else f"{name}_{number}"


def _repeated(names: list[str], variants: Mapping[str, Any], iterate: IterateConfig) -> _Repeated:
    wanted = iterate.stages
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"iterate.rounds={iterate.rounds} repeats {name!r}, which is not among the stages "
                "of the run",
                where=_WHERE,
                fix=f"{nearest(name, names)}stages: {', '.join(names) or 'none'}",
            )
    first = names.index(wanted[0])
    if names[first : first + len(wanted)] != wanted:
        raise ConfigError(
            f"{', '.join(wanted)} do not follow each other in stages",
            where=_WHERE,
            fix=f"name them in the order of stages, which is {', '.join(names)}",
        )
    kinds = {name: stage_of(variants, name) for name in wanted}
    models = [name for name, kind in kinds.items() if kind is StageName.reward_model]
    policy = wanted[-1]
    rest = [kind for kind in list(kinds.values())[1:] if kind is not StageName.reward_model]
    learns = kinds[policy] in _POLICIES and all(kind in _POLICIES for kind in rest)
    if kinds[wanted[0]] is not StageName.label or not learns or len(models) > 1:
        raise ConfigError(
            "a round is labels, one reward model at most, and policies",
            where=_WHERE,
            fix="such as [label,reward_model,ppo], or [label,dpo]",
        )
    return _Repeated(tuple(wanted), wanted[0], models[0] if models else "", policy)


def _variant(
    name: str,
    number: int,
    repeated: _Repeated,
    variants: Mapping[str, Any],
    iterate: IterateConfig,
) -> dict[str, Any]:
    """What a stage run of a later round runs with, over what it has in the first."""
    kind = stage_of(variants, name)
    assert kind is not None, "the names in `stages` are known"
    base = dict(variants.get(name) or {"stage": kind.value})
    now = {"reward_model": named(repeated.reward_model, number)} if repeated.reward_model else {}
    before = named(repeated.policy, number - 1)
    labels = [named(repeated.label, r) for r in range(1, number + 1)]
    if iterate.rankings is Rankings.newest:
        labels = labels[-1:]
    if kind is StageName.label:
        own: dict[str, Any] = {
            "label.models": [before if each == POLICY else each for each in iterate.models],
            "label.shares": list(iterate.shares),
            "label.scored": bool(repeated.reward_model),
        }
        own |= {"label.prompts": iterate.prompts} if iterate.prompts else {}
        made: dict[str, Any] = {"set": flat_keys(base.get("set"), name) | own}
        if repeated.reward_model:
            made["reward_model"] = named(repeated.reward_model, number - 1)
        return base | made
    if kind is StageName.reward_model:
        previous = (
            {"from": named(name, number - 1)} if iterate.reward_model is From.previous else {}
        )
        return base | {"rankings": labels} | previous
    made = {"rankings": labels} if kind is StageName.dpo else dict(now)
    if iterate.policy is From.previous:
        made |= {"from": named(name, number - 1), "reference": "sft"}
    return base | made


def _over(made: Mapping[str, Any], given: Any) -> Any:
    """What is made of a variant with what is given of it on top."""
    if not isinstance(given, Mapping) or not made:
        return given
    both = flat_keys(made.get("set"), "set") | flat_keys(given.get("set"), "set")
    return {**made, **given, **({"set": both} if both else {})}
