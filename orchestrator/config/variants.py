"""Schema of `variants.NAME`: one more run of a stage under a name of its own, with other settings.

As for `data.sets`, Hydra cannot add an entry to a dictionary of dataclasses, so `variants` is
declared as a dictionary of Any and this module checks its entries.
`orchestrator.planning.runs.expand` derives what each of them runs with.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from orchestrator.config.run import StageName
from orchestrator.process.shipped import shipped
from workers.errors import ConfigError, UnknownKeyError

KEYS = (
    "stage", "algorithm", "set", "from", "reference", "reward_model", "rankings",
    "demonstrations", "seed_as", "files",
)  # fmt: skip
# A variant of these would overwrite what the stage wrote: the tasks, the comparison of all models.
ONCE = (StageName.collect, StageName.evaluate, StageName.overoptimization)
# Names of checkpoints that no stage makes.
_GIVEN = ("initial", "critic", "gold")
_ALGORITHMS = shipped("conf") / "algorithm"
# Part of the names of checkpoints and of published models, so no dash and no dot.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One more run of a stage."""

    stage: StageName
    """The stage that it runs."""
    algorithm: str = ""
    """A file of conf/algorithm/, over the run's settings; "" = none."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`set`: dotted keys of the configuration -> values, over those of `algorithm`."""
    start: str = ""
    """`from`: the product that it starts from; "" = that of the stage."""
    reference: str = ""
    """The product that the policy is compared with; "" = the one that it starts from."""
    reward_model: str = ""
    """The product whose scores are its reward; "" = that of the stage."""
    rankings: tuple[str, ...] = ()
    """Runs of the stage label whose rankings it trains on; () = as a plain stage would."""
    demonstrations: tuple[str, ...] = ()
    """Runs of the stage constitution whose revisions it trains on; () = as a plain stage would."""
    seed_as: str = ""
    """Use the seeds of the stage or variant with this name; "" = its own."""
    of_file: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys that the file of `algorithm` sets."""

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted keys that differ from the run's configuration; `set` comes after the file."""
        return {**self.of_file, **self.settings}


def variant(name: str, given: object) -> Variant:
    """Convert one entry of `variants` to a Variant.

    Raises:
        UnknownKeyError: a key that a variant does not have.
        ConfigError: the name cannot be used, `stage` is missing or unknown, there is no such file
            in conf/algorithm, or a value has the wrong type.
    """
    where = f"variants.{name}"
    _check_name(name, where)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{given!r} is no variant of a stage", where=where, fix=f"set {where}.stage=ppo"
        )
    values: dict[str, Any] = {str(key): value for key, value in given.items()}
    for key in values:
        if key not in KEYS:
            raise _unknown(where, key)
    words = {
        key: _word(values.get(key), f"{where}.{key}")
        for key in ("stage", "algorithm", "from", "reference", "reward_model", "seed_as")
    }
    stage = _stage(words["stage"], where)
    if name in [each.value for each in StageName] and name != stage.value:
        raise ConfigError(
            f"the variant has the name of the stage {name}, and runs the stage {stage.value}",
            where=where,
            fix=f"give it another name, or set {where}.stage={name}",
        )
    algorithm = words["algorithm"]
    return Variant(
        stage=stage,
        algorithm=algorithm,
        settings=flat_keys(values.get("set"), f"{where}.set"),
        start=words["from"],
        reference=words["reference"],
        reward_model=words["reward_model"],
        rankings=_names(values.get("rankings"), f"{where}.rankings"),
        demonstrations=_names(values.get("demonstrations"), f"{where}.demonstrations"),
        seed_as=words["seed_as"],
        of_file=_of_file(algorithm, values.get("files"), where) if algorithm else {},
    )


def check_names(stages: Sequence[str], variants: Mapping[str, Any]) -> None:
    """Check every variant by itself, and that `stages` names stages and variants only.

    Raises:
        ConfigError: see `variant`; or a name in `stages` that means nothing.
    """
    made = {name: variant(name, given) for name, given in variants.items()}
    known = [*(stage.value for stage in StageName), *made]
    for name in stages:
        if name not in known:
            raise ConfigError(
                f"stages names {name!r}, which is neither a stage nor a variant",
                where="stages",
                fix=f"{nearest(name, known)}stages: {', '.join(each.value for each in StageName)}; "
                f"variants: {', '.join(made) or 'none'}",
            )
    for name, each in made.items():
        if each.seed_as and each.seed_as not in known:
            raise ConfigError(
                f"there is neither a stage nor a variant {each.seed_as!r}",
                where=f"variants.{name}.seed_as",
                fix=f"{nearest(each.seed_as, known)}leave it out for seeds of its own",
            )


def stage_of(variants: Mapping[str, Any], name: str) -> StageName | None:
    """The stage that a stage run of this name runs; None if there is none."""
    if name in variants:
        return variant(name, variants[name]).stage
    return StageName(name) if name in StageName.__members__ else None


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, as a question; "" if none is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def flat_keys(given: object, where: str) -> dict[str, Any]:
    """Keys in dotted form and their values; sections may be nested, dotted, or both."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{given!r} holds no keys", where=where, fix=f"write {where}.algorithm.clip=0.1"
        )
    found: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping) and value:
            inner = flat_keys(value, f"{where}.{key}")
            found |= {f"{key}.{below}": each for below, each in inner.items()}
        else:
            found[str(key)] = value
    return found


def with_files(variants: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, each with the keys of its file in conf/algorithm.

    config.yaml and the checkpoints keep them, so that a run that is resumed or repeated has the
    settings that it had when the file was another one.
    """
    found: dict[str, Any] = {}
    for name, given in variants.items():
        made = variant(name, given)
        more = {"files": {made.algorithm: dict(made.of_file)}} if made.algorithm else {}
        found[name] = {**given, **more}
    return found


def algorithm_files() -> list[str]:
    """The names of the files in conf/algorithm."""
    return sorted(file.stem for file in _ALGORITHMS.glob("*.yaml"))


@cache
def method_keys() -> tuple[str, ...]:
    """The keys that make algorithms differ: those that some file sets, but for the sizes."""
    names = algorithm_files()
    keys = {key for name in names for key in _keys_of_file(name, first=False)}
    sizes = {"prompts_per_iteration", "samples_per_prompt"}
    return tuple(f"algorithm.{key}" for key in sorted(keys - sizes))


def _of_file(name: str, kept: object, where: str) -> dict[str, Any]:
    if isinstance(kept, Mapping) and isinstance(own := kept.get(name), Mapping):
        return flat_keys(own, f"{where}.files.{name}")
    if name not in (known := algorithm_files()):
        raise ConfigError(
            f"there is no algorithm {name!r}",
            where=f"{where}.algorithm",
            fix=f"{nearest(name, known)}options: {', '.join(known)}",
        )
    return {f"algorithm.{key}": value for key, value in _keys_of_file(name, first=True).items()}


def _keys_of_file(name: str, *, first: bool) -> dict[str, Any]:
    """The keys of a file and of those that it builds on.

    The file at the bottom has the sizes of the pocket world; it counts only if it is named itself,
    because the sizes are those of the run.
    """
    read = OmegaConf.to_container(OmegaConf.load(_ALGORITHMS / f"{name}.yaml"))
    assert isinstance(read, dict), "a group's file holds keys"
    below = [str(each) for each in read.pop("defaults", []) if each != "_self_"]
    if not below and not first:
        return {}
    found: dict[str, Any] = {}
    for each in below:
        found |= _keys_of_file(each, first=False)
    return found | flat_keys(read, name)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or name in _GIVEN or name.endswith("_initial"):
        raise ConfigError(
            f"{name!r} cannot be the name of a variant",
            where=where,
            fix="write up to 40 small letters, digits and _, a letter first; not "
            f"{', '.join(_GIVEN)} or ..._initial",
        )


def _stage(word: str, where: str) -> StageName:
    names = [each.value for each in StageName if each not in ONCE]
    if word in names:
        return StageName(word)
    if not word:
        raise ConfigError("no stage is set", where=where, fix=f"set {where}.stage=ppo")
    if word in [each.value for each in ONCE]:
        raise ConfigError(
            f"the stage {word} runs once: a second one would overwrite what the first wrote",
            where=f"{where}.stage",
            fix=f"name {word} in stages, and set the keys below {word}",
        )
    raise ConfigError(
        f"{word!r} is no stage",
        where=f"{where}.stage",
        fix=f"{nearest(word, names)}stages: {', '.join(names)}",
    )


def _word(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is no name", where=where, fix="write one name")
    return str(value)


def _names(value: object, where: str) -> tuple[str, ...]:
    """One name, or several in a list."""
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    names = tuple(_word(each, where) for each in given if each is not None)
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"{value!r} names something twice, or nothing", where=where,
                          fix="name each stage run once")  # fmt: skip
    return names


def _unknown(where: str, key: str) -> UnknownKeyError:
    shown = KEYS[:-1]  # `files` is written by the command
    near = difflib.get_close_matches(key, shown, n=1, cutoff=0.5) or shown
    return UnknownKeyError(
        f"unknown key {where}.{key}",
        where="configuration",
        fix=f"did you mean {' or '.join(f'{where}.{each}' for each in near)}?",
    )
