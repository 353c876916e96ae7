"""A trained model as a service: `python -m orchestrator.serve FOLDER [--port 8000]`.

Starts vLLM's own OpenAI-compatible server on the folder, with the settings under which its engines
run here. `/v1/completions` takes text, `/v1/chat/completions` messages; both make the tokens of
training of them and sample as the folder's generation_config.json says. Talk to it with
`python -m orchestrator.chat`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoints import model_folder
from orchestrator.process.command_exit import exit_code
from orchestrator.process.installed import vllm_variants
from orchestrator.process.program import invocation, program
from workers.errors import ConfigError, UnsupportedPlatformError

LOOPBACK, PORT = "127.0.0.1", 8000
_SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` wants a distribution of that name
_CONTEXT = 4096  # tokens per sequence by default
_SEQUENCES = 16  # full-length sequences that fit into the KV cache of a CPU engine
_SMALLEST_CACHE = 64 << 20  # bytes
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Service:
    """What is served, and where."""

    folder: Path
    host: str
    port: int
    name: str  # of the model in requests
    dtype: str
    context: int  # tokens of prompt and answer together
    cache_bytes: int  # CPU engines
    cpu: bool
    extra: tuple[str, ...] = ()  # further arguments of vLLM's server


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace this process by vLLM's server; returns an exit code if that is impossible."""
    options, extra = _parser().parse_known_args(arguments)
    return exit_code(lambda: _serve(options, tuple(each for each in extra if each != "--")))


def _serve(options: argparse.Namespace, extra: tuple[str, ...]) -> None:
    service = plan(options, extra)
    talk = invocation("chat", "orchestrator.chat")
    sys.stdout.write(
        f"{service.name}: http://{service.host}:{service.port}/v1 when it is ready; Ctrl-C ends it"
        f"\ntalk to it: {talk} --url http://{service.host}:{service.port}\n"
    )
    sys.stdout.flush()
    os.execve(sys.executable, command(service), os.environ | environment(service))


def plan(options: argparse.Namespace, extra: tuple[str, ...] = ()) -> Service:
    """Check the folder, and choose the settings that were not given.

    Raises:
        MissingCheckpointError: there is no such folder.
        BrokenCheckpointError: it is not whole.
        ConfigError: it holds a model that generates no text, or a port is none.
        UnsupportedPlatformError: vLLM is not installed.
    """
    from workers.model_folders.shape import read_config, read_shape, writes_text

    cpu = _built_for_cpu()
    folder = model_folder.require(options.folder, "served", key="").resolve()
    config = read_config(folder)
    if not writes_text(config):
        raise ConfigError(
            "this is a reward model or a critic: it answers with a number, not with text",
            where=str(folder),
            fix="serve checkpoints/ppo, ppo_ptx, sft or base of a run; the folder's README.md "
            "shows how to score with this one",
        )
    if not 0 < options.port < 65536:
        raise ConfigError(
            f"{options.port} is no port", where="--port", fix="give a number from 1 to 65535"
        )
    shape = read_shape(folder)
    dtype = options.dtype or str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in _BYTES:
        raise ConfigError(
            f"no number format {dtype!r}", where="--dtype", fix=f"one of {', '.join(_BYTES)}"
        )
    context = options.context or min(shape.positions or _CONTEXT, _CONTEXT)
    token = 2 * shape.layers * shape.kv_heads * shape.head_size * _BYTES[dtype]
    return Service(
        folder=folder,
        host=options.host,
        port=options.port,
        name=options.name or folder.name,
        dtype=dtype,
        context=context,
        cache_bytes=max(_SMALLEST_CACHE, _SEQUENCES * context * token),
        cpu=cpu,
        extra=extra,
    )


def command(service: Service) -> list[str]:
    """The command line of the server."""
    line = [
        *(sys.executable, "-W", "ignore::DeprecationWarning", "-m", _SERVER),
        *("--model", str(service.folder), "--served-model-name", service.name),
        *("--host", service.host, "--port", str(service.port)),
        *("--dtype", service.dtype, "--max-model-len", str(service.context)),
    ]
    if service.cpu:
        line += [
            "--enforce-eager",
            # CPU random generators cannot skip ahead, which a request's seed needs across chunks.
            "--no-enable-chunked-prefill",
            *("--max-num-batched-tokens", str(max(service.context, _CONTEXT))),
            *("--kv-cache-memory-bytes", str(service.cache_bytes)),
        ]
    return [*line, *service.extra]


def environment(service: Service) -> dict[str, str]:
    """Environment variables that the server's process needs before it imports vLLM."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if service.cpu:
        settings |= {
            "TORCHDYNAMO_DISABLE": "1",  # compiling one helper of the sampler takes 20 s
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return settings


def _built_for_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs."""
    if variants := vllm_variants():
        return variants[0] == "cpu"
    raise UnsupportedPlatformError(
        "vLLM is not installed", where="orchestrator.serve", fix="run `make setup`"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.serve"),
        description=(__doc__ or "").splitlines()[0],
        epilog="further options are handed to vLLM's server as they are",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="a Hugging Face folder, such as RUN/checkpoints/ppo_ptx")
    parser.add_argument("--host", default=LOOPBACK,
                        help=f"address to listen on ({LOOPBACK}: this machine alone)")  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on ({PORT})")
    parser.add_argument("--name", default="", help="the model's name in requests (the folder's)")
    parser.add_argument("--dtype", default="", help="number format (that of the folder)")
    parser.add_argument("--context", type=int, default=0, metavar="N",
                        help=f"tokens of a dialogue (the model's, at most {_CONTEXT})")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
