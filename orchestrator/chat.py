"""Talk to a served model: `python -m orchestrator.chat [--url http://127.0.0.1:8000]`.

A line is what you say, the reply follows; an empty line begins a new dialogue, Ctrl-D ends. Works
with any server of OpenAI's chat completions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import httpx

from orchestrator.process.command_exit import exit_code, say, visible
from orchestrator.process.program import invocation, program
from workers.errors import ConfigError, RoleError
from workers.scorers.http_answer import ask

_URL = "http://127.0.0.1:8000"
_SECONDS = 300.0  # for one reply

Message = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _talk(options))


class Endpoint:
    """A server of chat completions.

    Args:
        client: Carries the base URL.
        model: Its name there; "" = the first one that it serves.
        settings: Further fields of each request, such as temperature.

    Raises:
        RoleError: it does not answer, or serves nothing.
    """

    def __init__(self, client: httpx.Client, model: str, settings: dict[str, Any]) -> None:
        self._client = client
        self._settings = settings
        self.cut = False  # whether the last reply ended at the limit of its tokens
        self.model = model or self._first_model()

    def reply(self, messages: Sequence[Message]) -> str:
        """Ask the model for one reply.

        Raises:
            RoleError: the server refuses, or answers with something else.
        """
        body = {"model": self.model, "messages": list(messages), **self._settings}
        answer = self._ask("POST", "/v1/chat/completions", body)
        try:
            choice = answer["choices"][0]
            content = choice["message"]["content"]
            self.cut = choice.get("finish_reason") == "length"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._error("its answer is no chat completion") from error
        if not isinstance(content, str | None):
            raise self._error("its answer is no chat completion")
        return content or ""

    def _first_model(self) -> str:
        try:
            return str(self._ask("GET", "/v1/models", None)["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise self._error("it lists no model") from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = ask(self._client, method, path, body)
        except httpx.HTTPError as error:
            raise self._error(f"it does not answer: {error}") from error
        try:
            said = answer.json()
        except ValueError as error:
            raise self._error(f"its answer is no JSON (status {answer.status})") from error
        if answer.status >= 400:
            raise self._error(f"status {answer.status}: {_words(said)}")
        return said

    def _error(self, what: str) -> RoleError:
        serve = invocation("serve", "orchestrator.serve")
        return RoleError(
            what,
            where=f"--url {self._client.base_url}",
            fix=f"start a server ({serve} FOLDER), wait until it is ready, and give its address",
        )


def dialogue(lines: Iterable[str], endpoint: Endpoint, system: str = "") -> Iterator[str]:
    """Yield the reply to each line; an empty line starts a new dialogue.

    Args:
        lines: What the user says.
        endpoint: Answers.
        system: Said before every dialogue; "" = nothing.
    """
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    said = list(start)
    for line in lines:
        if not line.strip():
            said = list(start)
            continue
        said.append({"role": "user", "content": line.strip()})
        reply = endpoint.reply(said)
        said.append({"role": "assistant", "content": reply})
        yield reply


def _talk(options: argparse.Namespace) -> None:
    settings = {
        name: value
        for name, value in (
            ("temperature", options.temperature), ("max_tokens", options.max_tokens),
            ("seed", options.seed),
        )
        if value is not None
    }  # fmt: skip
    try:
        client = httpx.Client(base_url=options.url, timeout=_SECONDS, trust_env=False)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"no address: {error}", where="--url", fix=f"such as {_URL}") from error
    with client:
        endpoint = Endpoint(client, options.model, settings)
        for reply in dialogue(_lines(), endpoint, options.system):
            sys.stdout.write(f"{visible(reply)}\n")
            sys.stdout.flush()
            if endpoint.cut:
                say("(cut at the limit of tokens: --max-tokens N sets another)\n")


def _lines() -> Iterator[str]:
    """Yield the lines that are typed, or those of a pipe."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _words(answer: Any) -> str:
    """The server's reason for refusing a request."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    told = error.get("message", error) if isinstance(error, dict) else error
    return f"{told}"[:300]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.chat"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--url", default=_URL, help=f"where the server listens ({_URL})")
    parser.add_argument("--model", default="", help="its name there (the first that is served)")
    parser.add_argument("--system", default="", help="a system turn before every dialogue")
    parser.add_argument("--temperature", type=float, help="0 = the likeliest (the model's own)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of a reply (the model's own)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same reply every time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
