"""What a run is given from outside its folder, recognised again when the run goes on.

Data, models, templates and the files of user functions are named by keys of the configuration.
These may stay the same while what lies there changes: a checkpoint keeps what each file was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from orchestrator.config.ranges import paths_of
from orchestrator.config.run import InputCheck
from orchestrator.config.schema import Config
from workers.errors import ConfigError
from workers.process.regular_files import sha256_of

_OUTPUTS = ("run.dir", "resume", "rerun", "evaluate.endpoint.cache")
_HASHED_BYTES = 64 << 20  # larger files are hashed on request alone
_Seen = tuple[int, int, str]  # bytes, time of change in microseconds, sha256 or ""
Files = dict[str, _Seen]  # by name


def take(config: Config) -> dict[str, Files]:
    """What lies at each key that names an input; what is not there is left out.

    Larger files than `_HASHED_BYTES` are known by size and time, unless run.verify_inputs=hash.
    """
    if config.run.verify_inputs is InputCheck.skip:
        return {}
    whole = config.run.verify_inputs is InputCheck.hash
    return {key: _files(path, whole=whole) for key, path in _given(config)}


def compare(before: Mapping[str, Files], now: Mapping[str, Files], config: Config) -> list[str]:
    """Compare what a checkpoint was made from with what is there now.

    Args:
        before: What the checkpoint holds.
        now: What `take` found.
        config: Of the run that goes on.

    Returns:
        Sentences on files that were written again and may be the same, and on what could not be
        or was not compared.

    Raises:
        ConfigError: a file has another size or content, is missing or new; names all of them.
    """
    if config.run.verify_inputs is InputCheck.skip:
        given = sorted({*before, *(key for key, _ in _given(config))})
        told = f"not compared with the checkpoint (run.verify_inputs=skip): {', '.join(given)}"
        return [told] if given else []
    changed, unsure = list[str](), list[str]()
    for key in before:
        there = now.get(key, {})
        for name in sorted({*before[key], *there}):
            told = _difference(before[key].get(name), there.get(name))
            if told:
                (unsure if told == _WRITTEN else changed).append(f"{key}: {name} {told}")
    if changed:
        raise ConfigError(
            f"inputs have changed since the checkpoint: {'; '.join(changed)}",
            where=", ".join(dict.fromkeys(each.partition(":")[0] for each in changed)),
            fix="put the files back, or start another run; run.verify_inputs=skip goes on with "
            "what is there now, and the result is of both",
        )
    notes = [f"{told}; run.verify_inputs=hash in a run tells for certain" for told in unsure]
    if unknown := sorted({*now} - {*before}):
        notes.append(f"the checkpoint does not tell what these inputs were: {', '.join(unknown)}")
    return notes


_WRITTEN = "was written again since the checkpoint, with the same size"


def _difference(before: _Seen | None, now: _Seen | None) -> str:
    if before is None or now is None:
        return "is missing" if now is None else "is new"
    if before[0] != now[0]:
        return f"has {now[0]:,} bytes instead of {before[0]:,}"
    if before[2] and now[2]:
        return "" if before[2] == now[2] else "has another content"
    return "" if before[1] == now[1] else _WRITTEN


def _given(config: Config) -> Iterator[tuple[str, Path]]:
    for key, value in paths_of(config):
        if value and key not in _OUTPUTS and os.path.lexists(value):
            yield key, Path(value)
    functions = {
        "reward.function": config.reward.function,
        "evaluate.judge_function": config.evaluate.judge_function,
    }
    for key, function in functions.items():
        if (file := _source(function.partition(":")[0])) is not None:
            yield key, file


def _source(module: str) -> Path | None:
    """The file of a module, without importing anything of it."""
    places: list[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    name = ""
    for part in module.split(".") if module else ():
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None


def _files(path: Path, *, whole: bool) -> Files:
    if not path.is_dir():
        return {path.name: _file(path, whole=whole)}
    visible = (p for p in path.rglob("*") if not any(
        part.startswith(".") for part in p.relative_to(path).parts
    ))  # fmt: skip
    return {str(p.relative_to(path)): _file(p, whole=whole) for p in sorted(visible) if p.is_file()}


def _file(path: Path, *, whole: bool) -> _Seen:
    try:
        seen = path.stat()
        if not whole and seen.st_size > _HASHED_BYTES:
            return (seen.st_size, seen.st_mtime_ns // 1000, "")
        digest = sha256_of(path)
    except OSError:  # whoever reads it tells
        return (0, 0, "")
    return (seen.st_size, seen.st_mtime_ns // 1000, digest)
