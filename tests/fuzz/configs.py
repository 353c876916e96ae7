"""Hostile command lines, composed as the command does, up to the plan.

A case gives one to four arguments: hostile values of keys by their type, groups and options, flags,
and broken syntax, beside an experiment that is whole. A line may be accepted where the
configuration then holds exactly what was typed, which is compared for each key by its type.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fuzz.frame import Case
from orchestrator import run
from orchestrator.command_line.arguments import prepare
from orchestrator.command_line.errors import explain
from orchestrator.command_line.key_types import group_options, is_list, schema_types
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan

_NUMBERS = (
    "nan", "inf", "-inf", "NaN", ".nan", "-.inf", "1e999", "-1e308", "1e308", "5e-324", "1e-320",
    "0", "-0", "-1", "0.5", "1.5", "1_000", "0x10", "1e5", "1:30", "1" * 30, "-" + "9" * 25,
    "9" * 5000, "1,", "1,2", "1 2", "one", "[1]", "{a:1}", "null", "", "true", "on", "'1'",
    "${seed}", "${nothing}", "${", "${oc.env:NOTHING_OF_THAT_NAME}", "1/2", "50%", "1k", "é", "½",
)  # fmt: skip
_TEXTS = (
    "2026_11_28", "é", "a b", "a,b", "a=b", "(", "[", "{", "]", "f(x)", "it's", '"', "'", "\\",
    "a\\'", "\udce9", "a\nb", "a\tb", "\x1b[31m", "\x7f", "x" * 300, "x/" * 3000, "é" * 200, "..",
    "/dev/null", "/proc/self/mem", "/", "", " ", "null", "${", "${seed}", "${run}", "${nothing.at}",
    "${run.dir}", "\u202etxt", "\u2018a\u2019", "-", "--", "~", "#", "%s", "{}", "$(id)", "`id`",
    "https://u:secret@host/x", "//x", "a\u0000b", "${oc.env:HOME}", "${oc.decode:x}", "???",
)  # fmt: skip
_FLAGS = ("true", "false", "yes", "off", "2", "-1", "maybe", "", "null", "[true]", "nan", "0.5")
_LISTS = (
    "[]", "[a,a]", "[a,]", "['']", "[null]", "[[a]]", "[1e5]", "a,b", "[a", "a]", "{a:b}", "null",
    "", "[nan]", "[é]", "[sft,ppo]", "[sft,sft]", "[\u201ca\u201d]", "${model}", "[${seed}]",
)  # fmt: skip
_SECTIONS = ("null", "", "3", "[]", "{}", "{a:1}", "x", "${model}", "{", "nan")
_SYNTAX = (
    "", "=", "=x", "a=b=c", "seed", "seed =1", "seed= 1", "+", "++", "~", "~run", "~seed", "~model",
    "+++seed=1", "seed==1", "seed:=1", "seed:1", ".=1", "seed.=1", ".seed=1", "seed..x=1", "a b=1",
    "--", "-", "---x", "--experiment", "--seed=1", "-s", "\u2013m", "@/seed", "seed@x=1", "x@=1",
    "model@_global_=pocket", "model@x=pocket", "+model/pocket=1", "model/pocket=1", "hydra=1",
    "hydra.nothing=1", "hydra.job.num=1", "+hydra.x=1", "hydra.searchpath=[x]", "hydra/launcher=x",
    "hydra/job_logging=x", "hydra.mode=3", "hydra.verbose=x", "hydra.run.dir=x", "_target_=x",
    "+_target_=os.system", "+_self_=1", "run.dir.x=1", "seed.x=1", "stages.0=sft", "stages[0]=sft",
    "data.sets=1", "data.sets.=1", "data.sets.x=1", "data.sets.x.kind=prompts", "data.sets.x.y=1",
    "data.sets.x={kind:prompts}", "data.sets.x.columns=[", "data.sets.x.weight=nan", "data.sets=",
    "data.sets.é.path=x", "data.sets.x.path=null", "data.sets.x.y.z=1", "~data.sets.x", "lr=1",
    "defaults=[]", "+defaults=[]", "override model=x", "seed=1 # no", "seed=;1", "[seed]=1",
    "{seed:1}", "seed=\u00a01", "se\u200bed=1", "SEED=1", "Seed=1", "algorithm.Clip=1", "*=1",
    "algorithm.*=1", "algorithm.kl=1", "algorithm.kl.limit.x=1", "+seed=1", "++seed=nan",
)  # fmt: skip
_FINE = "the configuration holds exactly what was typed, finite and in its range"
_BASE = ("+experiment=pocket_tiny", "+experiment=pocket", "+experiment=pocket_scale")


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """Command lines made from the seed; nothing is written."""
    del folder
    rng = random.Random(f"configs {seed}")
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        for _ in range(count):
            arguments = _line(rng)
            name = " ".join(each if len(each) < 60 else f"{each[:57]}..." for each in arguments)
            yield Case(name.encode("utf-8", "backslashreplace").decode(), _runs(arguments), _FINE)


def _runs(arguments: Sequence[str]) -> Any:
    return lambda: plan_of(arguments)


def plan_of(arguments: Sequence[str]) -> str:
    """The plan that the command prints for these arguments; of a sweep, of its first job."""
    ready = [run.may_add(each) for each in prepare(arguments)]
    parser = OverridesParser.create()
    try:
        overrides = [each for each in ready if not each.startswith("-")]
        parsed = parser.parse_overrides(overrides)
        kept = [o for o, p in zip(overrides, parsed, strict=True) if not p.is_sweep_override()]
        composed = compose("config", overrides=[o for o in kept if "hydra.sweep" not in o])
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    config = run.to_config(composed)
    plan = render_plan(make_plan(config))
    if "-m" not in arguments:
        _compare(arguments, config)
    return plan


def _compare(arguments: Sequence[str], config: Config) -> None:
    """AssertionError where an accepted value is another than the one that was typed."""
    typed = dict(each.lstrip("+").partition("=")[::2] for each in arguments)
    for key, text in typed.items():
        kind = schema_types().get(key)
        if kind is None or key in group_options() or "${" in text:
            continue
        held = functools.reduce(getattr, key.split("."), config)
        assert _same(held, text), f"{key}={text} became {held!r}"


def _same(held: object, text: str) -> bool:
    quoted = len(text) > 1 and text[:1] == text[-1:] and text[:1] in ("'", '"')
    bare = text[1:-1] if quoted else text
    if isinstance(held, bool):
        return bare.lower() in (("true", "yes", "on", "1") if held else ("false", "no", "off", "0"))
    if isinstance(held, Enum):
        return bare == held.value
    if isinstance(held, int):
        return int(bare) == held
    if isinstance(held, float):
        return math.isfinite(held) and float(bare) == held
    if held is None:
        return text == "null"
    if isinstance(held, list):
        items = [each.strip(" '") for each in text.strip("[]").split(",") if each.strip(" '")]
        return [each.value if isinstance(each, Enum) else each for each in held] == items
    return held == bare if isinstance(held, str) else text == "{}"


def _line(rng: random.Random) -> list[str]:
    arguments = [rng.choice(_BASE)] if rng.random() < 0.9 else []
    makers = (_value, _value, _value, _value, _group, _syntax)
    arguments += [rng.choice(makers)(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    if rng.random() < 0.05:
        arguments.insert(0, "-m")
    if rng.random() < 0.2:
        rng.shuffle(arguments)
    return arguments


def _value(rng: random.Random) -> str:
    key = rng.choice(list(schema_types()))
    sign = rng.choice(("", "", "", "", "+", "++"))
    return f"{sign}{key}={_of_type(rng, schema_types()[key])}"


def _of_type(rng: random.Random, kind: Any) -> str:
    if rng.random() < 0.1:  # of another type than the key's
        return rng.choice((*_NUMBERS, *_TEXTS, *_LISTS))
    if kind is str:
        return rng.choice(_TEXTS)
    if kind is bool:
        return rng.choice(_FLAGS)
    if is_list(kind):
        return rng.choice(_LISTS)
    with contextlib.suppress(TypeError):
        if issubclass(kind, Enum):
            known = rng.choice(list(kind)).value
            return rng.choice((known, known.upper(), f"{known},", "", "null", "3", "x", "[x]"))
    return rng.choice(_SECTIONS if hasattr(kind, "__dataclass_fields__") else _NUMBERS)


def _group(rng: random.Random) -> str:
    group = rng.choice(list(group_options()))
    known = rng.choice(group_options()[group])
    option = rng.choice((
        known, known, "nothing", "", "null", f"{known},", f"[{known}]", "../x", "é", "/etc/passwd",
        f"{known}.yaml", known.upper(), f"'{known}'",
    ))  # fmt: skip
    return f"{rng.choice(('', '', '+', '++', '~'))}{group}={option}"


def _syntax(rng: random.Random) -> str:
    text = rng.choice(_SYNTAX)
    if rng.random() < 0.3:  # one character more or less somewhere
        place = rng.randint(0, len(text))
        extra = rng.choice(("", "=", ",", "'", "[", "}", "$", "\\", " ", "é", "\udc80", "+", "."))
        text = text[:place] + extra + text[place + (not extra) :]
    return text
