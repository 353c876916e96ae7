"""The configuration of an earlier run, used again: `resume=FOLDER` alone, and `+rerun=FOLDER`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.command_line.errors import explain
from orchestrator.command_line.key_types import CONF, OPEN_SECTIONS
from orchestrator.config.schema import Config
from orchestrator.config.variants import check_names
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.resume import find_folder, newest_of_any
from workers.errors import ConfigError, UnknownKeyError

# Taken from this command line only, not from the earlier one.
_OF_THE_COMMAND = ("run.overwrite", "run.plan_only", "resume", "rerun")


@dataclass(frozen=True, slots=True)
class Command:
    """The command line, as Hydra parsed it."""

    overrides: Sequence[str]  # key=value, group=option, +key=value
    choices: Mapping[str, str]  # group -> option


def configuration(composed: DictConfig, command: Command) -> tuple[DictConfig, list[str]]:
    """The configuration of the requested run, and notes on its origin.

    Without an experiment, `resume=FOLDER` (or a checkpoint in it, or `latest`) takes the
    configuration from the folder's config.yaml; so does `rerun=FOLDER`. Other arguments of the
    command override it; `config_changes.compare_config` decides which of them a resumed run may
    change.

    Args:
        composed: What the command line composes.
        command: The command line.

    Raises:
        ConfigError: config.yaml is missing or damaged, of another version, or what is typed beside
            it contradicts it.
        MissingCheckpointError: there is no run where one was promised.
    """
    typed = OverridesParser.create().parse_overrides(list(command.overrides))
    by_experiment = any(each.key_or_group == "experiment" for each in typed)
    resume, rerun = str(composed.get("resume") or ""), str(composed.get("rerun") or "")
    if rerun:
        if resume or by_experiment:
            other = f"resume={resume}" if resume else "an experiment"
            raise ConfigError(
                f"a run cannot be both rerun={rerun} and {other}",
                where="command line",
                fix="give one of them; other keys may be given with rerun",
            )
        file = _config_file(Path(rerun))
    elif by_experiment or resume in ("", "auto"):
        return composed, []
    else:
        folder = _resumed(composed, resume, typed)
        file, resume = folder.config, resume if resume != "latest" else str(folder.path)
    config = read_configuration(file)
    kept = [*_OF_THE_COMMAND, *(["run.dir"] if rerun else [])]
    raw = OmegaConf.to_container(composed, resolve=False)
    for key in kept:
        _put(config, key, _value(raw, key))
    config.resume = resume
    said = [each for each in typed if each.key_or_group not in ("resume", "rerun")]
    for each in said:
        _apply(config, composed, each, command.choices)
    words = f"; over it {', '.join(str(each.input_line) for each in said)}" if said else ""
    return config, [f"configuration from {file}{words}"]


def _resumed(composed: DictConfig, resume: str, typed: Sequence[Override]) -> RunFolder:
    if resume != "latest":
        return find_folder(resume, Path(composed.run.dir))
    here = Path(composed.run.dir)
    named = any(each.key_or_group == "run.dir" for each in typed)
    if named:
        return newest_of_any(here.parent, "*/state")
    return newest_of_any(here.parent.parent, "*/*/state")  # experiment and time, as conf/ has it


def _config_file(given: Path) -> Path:
    return given if given.is_file() else given / "config.yaml"


def read_configuration(file: Path) -> DictConfig:
    """A run's config.yaml over the defaults of every key: it may be older than some of them.

    Raises:
        ConfigError: it is missing, damaged, or of another version.
    """
    try:
        loaded = OmegaConf.create(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        if not isinstance(loaded, DictConfig) or "stages" not in loaded:
            raise ConfigError(
                "this is not the configuration of a run", where=str(file), fix=_FIX_FOLDER
            )
        schema = OmegaConf.structured(Config)
        _require_sections(schema, loaded, file)
        merged = OmegaConf.merge(schema, loaded)
        _require_stages(merged, file)
    except OSError as error:
        raise ConfigError(
            f"the run's configuration cannot be read: {error.strerror}",
            where=str(file),
            fix=_FIX_FOLDER,
        ) from error
    except OmegaConfBaseException as error:
        found = explain(error)
        version = "another version wrote it, or it was edited: compose the run by +experiment=NAME"
        kind = UnknownKeyError if isinstance(found, UnknownKeyError) else ConfigError
        raise kind(found.what, where=f"{file}, {found.where}", fix=version) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the run's configuration is damaged: {' '.join(str(error).split())[:200]}",
            where=str(file),
            fix="compose the run again by +experiment=NAME and its keys",
        ) from error
    assert isinstance(merged, DictConfig)
    return merged


def _require_stages(merged: DictConfig | ListConfig, file: Path) -> None:
    """Name the stage or variant that another version wrote."""
    try:
        variants = OmegaConf.to_container(merged.variants, resolve=True)
        check_names(list(merged.stages), cast(dict[str, Any], variants))
    except ConfigError as error:
        error.where = f"{file}, {error.where}"
        raise


def _require_sections(schema: DictConfig, loaded: DictConfig, file: Path, prefix: str = "") -> None:
    """Name the section that is not a mapping: OmegaConf's error does not."""
    for name, section in schema.items_ex(resolve=False):
        found = loaded._get_node(name) if name in loaded else None
        if isinstance(section, DictConfig) and found is not None:
            if not isinstance(found, DictConfig):
                raise ConfigError(
                    f"{prefix}{name} is no section of keys", where=str(file), fix=_FIX_FOLDER
                )
            _require_sections(section, found, file, f"{prefix}{name}.")


_FIX_FOLDER = "give the folder of a run, which holds config.yaml"


def _apply(
    config: DictConfig, composed: DictConfig, typed: Override, choices: Mapping[str, str]
) -> None:
    key = typed.key_or_group
    if typed.is_delete():
        raise ConfigError(
            f"{typed.input_line}: nothing is removed from the configuration of an earlier run",
            where="command line",
            fix="give the key its default, or compose the run by +experiment=NAME",
        )
    keys = _keys_of_option(key, choices[key]) if key in choices else [key]
    for each in keys:
        _put(config, each, OmegaConf.select(composed, each))


def _keys_of_option(group: str, option: str) -> Iterator[str]:
    """Every key that an option of a group sets, including those of the options that it selects."""
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    package = first.removeprefix("# @package ").strip() if first.startswith("# @package") else group
    plain = yaml.safe_load(text) or {}
    for chosen in plain.pop("defaults", ()):
        if isinstance(chosen, dict):  # override /GROUP: OPTION
            for other, name in chosen.items():
                yield from _keys_of_option(other.rpartition("/")[2], name)
    prefix = "" if package == "_global_" else f"{package}."
    yield from (f"{prefix}{key}" for key in _leaves(plain))


def _leaves(node: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _value(plain: object, key: str) -> object:
    for name in key.split("."):
        assert isinstance(plain, dict)
        plain = plain[name]
    return plain


def _put(config: DictConfig, key: str, value: object) -> None:
    OmegaConf.update(config, key, value, force_add=key.startswith(OPEN_SECTIONS))
