"""A reward model as a server: `python -m orchestrator.serve_reward FOLDER [--port 9000]`.

Other runs ask it (`reward.kind=remote`, `reward.settings.url=http://HOST:9000/score`), and other
frameworks, such as OpenRLHF (`--remote_rm_url http://HOST:9000/get_reward`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from orchestrator.checkpoints import model_folder
from orchestrator.pages.address import LOOPBACK, add_options, address_of, listening, run
from orchestrator.process.command_exit import exit_code, tell
from orchestrator.process.program import program
from orchestrator.process.secrets import secret
from workers.errors import ConfigError

PORT = 9000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: _serve(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.serve_reward"), description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a reward model: RUN/checkpoints/reward_model")
    add_options(parser, PORT)
    add("--key-variable", default="", metavar="NAME",
        help="environment variable with the bearer key that clients must send")  # fmt: skip
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--threads", type=int, default=1, help="processor threads (1)")
    add("--batch-tokens", type=int, default=8192, help="most tokens of a forward pass (8192)")
    add("--batch", type=int, default=64, help="most sequences scored together (64)")
    add("--queue", type=int, default=1024,
        help="most sequences that wait; more are refused with HTTP 429 (1024)")  # fmt: skip
    return parser


def _serve(options: argparse.Namespace) -> None:
    for name in ("threads", "batch_tokens", "batch", "queue"):
        if (number := getattr(options, name)) < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{number} is too few", where=option, fix="give at least 1")
    address = address_of(options)
    address.check()
    if options.host not in LOOPBACK and not options.key_variable:
        raise ConfigError(
            "other machines would reach the server, and it asks for no key",
            where="--host",
            fix="set an environment variable to a key, and name it by --key-variable",
        )
    key = secret(options.key_variable, "--key-variable") if options.key_variable else ""
    folder = model_folder.require(options.folder, "reward_model", key="").resolve()
    with closing(listening(address)) as place:  # a port that is taken is known before the model
        app = build(folder, options, key)
        tell(f"{address.base(place.getsockname()[1])}/score (Ctrl-C ends it)\n")
        run(app, place, address)


def build(folder: Path, options: argparse.Namespace, key: str) -> Any:
    """Load the model, and make the application."""
    from orchestrator.serve_reward.app import build_app
    from workers.records.specs import FrozenModelSpec
    from workers.scorers.served_model import ServedModel

    device = _device(options.device)
    spec = FrozenModelSpec(
        str(folder), options.dtype, device, options.threads, options.batch_tokens
    )
    scores = ServedModel(spec).scores
    return build_app(scores, key=key, batch=options.batch, queue=options.queue)


def _device(name: str) -> Any:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
