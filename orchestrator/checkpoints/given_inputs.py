"""Detection of changed input files when a run resumes.

Keys of the configuration name data, models, templates and the files of user functions. The files
may change while the paths stay the same, so a checkpoint records size, time and hash of each file.
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
from orchestrator.config.variants import variant
from workers.errors import ConfigError
from workers.process.regular_files import sha256_of

_OUTPUTS = ("run.dir", "resume", "rerun", "evaluate.endpoint.cache", "label.ai.cache")
_HASHED_BYTES = 64 << 20  # larger files are hashed only on request
_Seen = tuple[int, int, str]  # bytes, modification time in microseconds, sha256 or ""
Files = dict[str, _Seen]  # by file name


def take(config: Config) -> dict[str, Files]:
    """Record the files at each key that names an input; paths that do not exist are left out.

    Files larger than `_HASHED_BYTES` get no hash unless run.verify_inputs=hash.
    """
    if config.run.verify_inputs is InputCheck.skip:
        return {}
    whole = config.run.verify_inputs is InputCheck.hash
    return {key: _files(path, whole=whole) for key, path in _given(config)}


def compare(before: Mapping[str, Files], now: Mapping[str, Files], config: Config) -> list[str]:
    """Compare the input files of a checkpoint with the present ones.

    Args:
        before: The files recorded in the checkpoint.
        now: The result of `take`.
        config: The configuration of the resumed run.

    Returns:
        One sentence per file with a new modification time but the same size, and on inputs that
        were not compared.

    Raises:
        ConfigError: files have another size or content, are missing or new; names all of them.
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
            fix="put the files back, or start another run; run.verify_inputs=skip "
            "continues with the present files, and the result depends on both",
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
    named = {
        "reward.kind": config.reward.kind,
        "reward.function": config.reward.function,  # unused ones too, as checkpoints have them
        **{each.where: each.path for each in config.reward.needs.code},
        **{term.where: term.kind for term in config.reward.each if term.name},
        "evaluate.judge_function": config.evaluate.judge_function,
        "label.function": config.label.function,
        "constitution.function": config.constitution.function,
        "algorithm.advantage": config.algorithm.advantage,
        **_of_variants(config),
    }
    for key, path in named.items():
        if ":" in path and (file := _source(path.partition(":")[0])) is not None:
            yield key, file


def _of_variants(config: Config) -> dict[str, str]:
    key = "algorithm.advantage"
    changes = {name: variant(name, given).changes for name, given in config.variants.items()}
    return {
        f"variants.{name}.set.{key}": str(own[key]) for name, own in changes.items() if key in own
    }


def _source(module: str) -> Path | None:
    """The file of a module, found without importing anything."""
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
    except OSError:  # reported later by the code that reads the file
        return (0, 0, "")
    return (seen.st_size, seen.st_mtime_ns // 1000, digest)
