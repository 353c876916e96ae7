"""The files of a checkpoint folder: which of them are the model, and whether each can be read.

The checks ensure that all loaders (of trainers, engines and the plan) read the same files. Nothing
here reads a tensor, and no code of a folder is ever executed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from workers.errors import BrokenCheckpointError
from workers.process.library_errors import reading, words

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "copy or download the checkpoint again; this one is not whole"
_CONVERT = "load it once with transformers and write it with save_pretrained, as safetensors"
_MOST_JSON = 256 << 20  # bytes; the largest published index has 40 MB
_READ = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # by transformers and vLLM
# First bytes of files that are not safetensors but are named like weights.
_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself",
     "run `git lfs pull` in the folder, or download the file again"),
    (b"<!doctype", "an HTML page, not weights", "download the file itself, not its page"),
    (b"<html", "an HTML page, not weights", "download the file itself, not its page"),
    (b"PK\x03\x04", "a zip archive (pickled weights of torch?), not safetensors", _CONVERT),
    (b"\x80\x02", "a Python pickle, not safetensors; reading it could run code", _CONVERT),
    (b"GGUF", "a GGUF file, not safetensors", "give the original model; GGUF cannot be trained"),
)  # fmt: skip
# Weights in other formats, which are not read.
_OTHERS = (
    ("*.bin", "pickled weights", _CONVERT),
    ("*.pt", "pickled weights", _CONVERT),
    ("*.pth", "pickled weights", _CONVERT),
    ("original/*.pth", "pickled weights", _CONVERT),
    ("*.gguf", "GGUF files", "give the original model; GGUF cannot be trained"),
    ("*.h5", "TensorFlow weights", _CONVERT),
    ("*.msgpack", "Flax weights", _CONVERT),
)


class Stored(NamedTuple):
    """One tensor in a file."""

    name: str
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]


def broken(where: Path, why: str, fix: str = _AGAIN) -> BrokenCheckpointError:
    """The error for a file or folder that cannot be used."""
    return BrokenCheckpointError(why, where=str(where), fix=fix)


def require_file(file: Path, fix: str = _AGAIN) -> None:
    """Require a regular file inside its folder.

    Links are followed within the folder, and in a Hugging Face cache, whose folders consist of
    links into the neighbouring `blobs/`.

    Args:
        file: The file; not opened, because opening a pipe can wait forever.
        fix: What the user can do.

    Raises:
        BrokenCheckpointError: It is missing, a folder, a pipe or a device, or a link that is broken
            or leads out of the folder.
    """
    try:
        linked = file.is_symlink()
        mode = file.stat().st_mode
        real, home = file.resolve(strict=True), file.parent.resolve(strict=True)
    except FileNotFoundError as error:
        how = "is a link to a file that is not there" if file.is_symlink() else "is missing"
        raise broken(file.parent, f"{file.name} {how}", fix) from error
    except (OSError, RuntimeError, ValueError) as error:  # also for link loops and invalid names
        raise broken(file.parent, f"{file.name} cannot be read: {words(error)}", fix) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise broken(file.parent, f"{file.name} is {kind}", fix)
    if linked and not (real.is_relative_to(home) or _in_cache(real, home)):
        raise broken(
            file.parent,
            f"{file.name} is a link that leaves the folder, to {real}",
            "copy the file into the folder, or give the folder that holds it",
        )


def require_plain_files(folder: Path) -> None:
    """Require that all settings and tokenizer files in the folder are regular files.

    Raises:
        BrokenCheckpointError: One of them is a pipe, a device, a folder, or a link that leaves the
            folder.
    """
    with reading(folder, "the folder cannot be read", "check its permissions"):
        names = sorted(path for path in folder.iterdir() if path.suffix in _READ)
    for path in names:
        require_file(path)


def _in_cache(real: Path, home: Path) -> bool:
    """Whether a file is in the `blobs/` folder of the Hugging Face cache that contains `home`."""
    return home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        BrokenCheckpointError: It is missing, too large, not a JSON object, or contains NaN or an
            infinite setting.
    """
    require_file(file)
    if file.stat().st_size > _MOST_JSON:
        raise broken(file.parent, f"{file.name} is larger than {_MOST_JSON >> 20} MiB")
    with reading(file.parent, f"{file.name} does not parse", _AGAIN):
        text = file.read_text(encoding="utf-8")
        _refuse_start(file, text[:64].encode())
        content = json.loads(text, parse_constant=_constant)
    if not isinstance(content, dict):
        raise broken(file.parent, f"{file.name} holds no JSON object")
    _refuse_numbers(file, content)
    return content


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no value of a setting")
    return float(name)  # infinity: allowed in lists, `_refuse_numbers` checks the rest


def _refuse_numbers(file: Path, content: dict[str, Any]) -> None:
    """Raise for infinite settings. Lists may contain infinity, as Mamba's time step limits do."""
    for name, value in content.items():
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise broken(
                file, f"{name} is infinite in {file.name}", "write the number of the model"
            )


def _refuse_start(file: Path, start: bytes) -> None:
    plain = start.lstrip().lower()
    for sign, what, fix in _STARTS:
        if start.startswith(sign) or plain.startswith(sign):
            raise broken(file.parent, f"{file.name} is {what}", fix)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, in the order of their names.

    That is model.safetensors, or the shards that the index names. No loader reads other files, such
    as a second copy in another format (consolidated.safetensors, original/).

    Raises:
        BrokenCheckpointError: There are none, or it is unclear which; says what is there instead.
    """
    index, whole = folder / INDEX, folder / WHOLE
    with reading(folder, "the folder cannot be read", "check its path and its permissions"):
        has_index = index.is_symlink() or index.exists()
        has_whole = whole.is_symlink() or whole.exists()
        others = sorted(p.name for p in folder.glob("*.safetensors") if p.name != WHOLE)
    if has_index:
        shards = _shards(folder)
        if has_whole and WHOLE not in {shard.name for shard in shards}:
            raise broken(
                folder,
                f"there are both {WHOLE} and an index of other files; loaders disagree on which "
                "is the model",
                f"remove one of them: {WHOLE}, or {INDEX} with its files",
            )
        return shards
    if has_whole:
        if others:
            raise broken(
                folder,
                f"{_list(others)} next to {WHOLE}, without an index: engines would read both",
                "move what is not the model out of the folder",
            )
        return [whole]
    raise _parts(folder, others) if others else _other(folder)


def _shards(folder: Path) -> list[Path]:
    named = _weight_map(folder).values()
    shards: list[Path] = []
    for name in sorted(set(named)):
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise broken(
                folder,
                f"{INDEX} names {name!r}, which is no file name",
                "an index names files in its own folder; copy the checkpoint from a source that "
                "you trust",
            )
        shards.append(folder / name)
    with reading(folder, f"the files that {INDEX} names cannot be looked at", _AGAIN):
        missing = [s.name for s in shards if not (s.is_symlink() or s.exists())]
    if missing:
        raise broken(
            folder,
            f"{len(missing)} of {len(shards)} files that {INDEX} names are missing: "
            f"{_list(missing)}",
            "download the missing files",
        )
    return shards


def _weight_map(folder: Path) -> dict[str, str]:
    """The file of each tensor according to the index."""
    content = read_json(folder / INDEX)
    named = content.get("weight_map")
    if not isinstance(content.get("metadata"), dict):
        raise broken(
            folder,
            f"{INDEX} holds no metadata, which transformers asks for",
            'add "metadata": {} to it',
        )
    if not isinstance(named, dict) or not named:
        raise broken(folder, f"{INDEX} holds no weight_map")
    if not all(isinstance(name, str) for name in named.values()):
        raise broken(folder, f"{INDEX} names files that are no text")
    return named


def _parts(folder: Path, others: list[str]) -> BrokenCheckpointError:
    if "adapter_model.safetensors" in others:
        return _adapter(folder)
    if all(name.startswith("consolidated") for name in others):
        return broken(
            folder,
            f"only {_list(others)}: weights in the format of Mistral's own library",
            "download the files of the transformers format (model*.safetensors), too",
        )
    return broken(
        folder,
        f"no {WHOLE}, and no {INDEX} that says what {_list(others)} hold",
        f"download the index, or name the only file {WHOLE}",
    )


def _other(folder: Path) -> BrokenCheckpointError:
    """The error for a folder without a *.safetensors file; says what it holds instead."""
    if (folder / "adapter_config.json").exists():
        return _adapter(folder)
    for pattern, what, fix in _OTHERS:
        if found := sorted(p.name for p in folder.glob(pattern)):
            return broken(folder, f"no *.safetensors file, only {what}: {_list(found)}", fix)
    return broken(
        folder,
        f"no *.safetensors file: neither {WHOLE} nor {INDEX}",
        "give the folder of a Hugging Face model",
    )


def _adapter(folder: Path) -> BrokenCheckpointError:
    file = folder / "adapter_config.json"
    base = read_json(file).get("base_model_name_or_path") if file.exists() else None
    return broken(
        folder,
        f"an adapter alone, not a model; its base is {base or 'not named'}",
        "merge it into its base (peft: merge_and_unload, then save_pretrained) and give that "
        "folder",
    )


def read_header(file: Path) -> list[Stored]:
    """The tensors in a safetensors file, in the order of their bytes.

    Raises:
        BrokenCheckpointError: It is not a safetensors file, or its size contradicts its header.
    """
    require_file(file)
    with reading(file.parent, f"{file.name} cannot be read", _AGAIN):
        with file.open("rb") as opened:
            start = opened.read(64)
        size = file.stat().st_size
    if start[8:9] != b"{":  # a valid file's length field may match a sign by chance
        _refuse_start(file, start)
    if size < 8:
        raise broken(file.parent, f"{file.name} is cut short: {size} bytes")
    with (
        reading(
            file.parent, f"{file.name} is cut short or no safetensors file ({size:,} bytes)", _AGAIN
        ),
        safe_open(file, framework="np") as weights,
    ):
        slices = {name: weights.get_slice(name) for name in weights.offset_keys()}
        return [Stored(n, s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()]


def read_headers(folder: Path) -> dict[Path, list[Stored]]:
    """The tensors of a model by file, checked against its index.

    Raises:
        BrokenCheckpointError: As `weight_files` and `read_header`; or a tensor is in two files, or
            in another file than the index says.
    """
    headers = {file: read_header(file) for file in weight_files(folder)}
    places: dict[str, str] = {}
    for file, tensors in headers.items():
        for tensor in tensors:
            if tensor.name in places:
                raise broken(
                    folder, f"{tensor.name} is in {places[tensor.name]} and in {file.name}"
                )
            places[tensor.name] = file.name
    if (folder / INDEX).exists():
        named = _weight_map(folder)
        wrong = [name for name, file in named.items() if places.get(name) != file]
        if wrong:
            raise broken(
                folder,
                f"{len(wrong)} of {len(named)} tensors are not where {INDEX} says: {_list(wrong)}",
            )
    return headers


def _list(names: Iterable[str]) -> str:
    first, *more = names
    rest = f", {more[0]}" if len(more) == 1 else f" and {len(more)} more" if more else ""
    return f"{first}{rest}"
