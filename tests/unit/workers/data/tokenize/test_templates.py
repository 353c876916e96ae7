"""Chat templates: where a reply is found, what a template may do, and what it says."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import Files, byte_tokenizer
from transformers import AutoTokenizer

from workers.data.rows.examples import Comparison, Demonstration, Message, Rejected
from workers.data.rows.ties import tied_ranks
from workers.data.tokenize.render import Renderer
from workers.data.tokenize.template_sandbox import BrokenTemplateError, Template
from workers.data.tokenize.time_limit import ItemTooCostlyError, _used, _Work, watched
from workers.errors import DataError

PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHANNEL = (
    "{% for m in messages %}{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}(final){% else %}: {% endif %}{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
# Thoughts are written where there are none, and turns before the last user's lose them.
THINKS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}"
    "<think></think>{% endif %}{{ m.content.strip() }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = (Message("user", "Say it"),)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def renderer(tokenizer: Any, template: str, **options: Any) -> Renderer:
    tokenizer.chat_template = template
    limits = {"max_prompt_tokens": 500, "max_completion_tokens": 200}
    return Renderer(tokenizer, **(limits | options))


def trained(tokenizer: Any, template: str, reply: str, context: Any = ASKED) -> str:
    (row,) = renderer(tokenizer, template).demonstrations([Demonstration(context, reply, "F:1")])
    assert not isinstance(row, Rejected), row
    return str(tokenizer.decode(row.tokens[row.targets].tolist()))


@pytest.mark.parametrize(
    "reply", ["final", "final)", "(final)", "assistant", "a", "i", ": ", "user"]
)
def test_a_reply_is_found_by_its_place_not_by_its_text(tokenizer: Any, reply: str) -> None:
    assert trained(tokenizer, CHANNEL, reply) == f"(final){reply}<|end|>"
    assert trained(tokenizer, PLAIN, reply) == f"{reply}<|end|>"


def test_what_a_template_writes_before_a_reply_is_trained_with_it(tokenizer: Any) -> None:
    assert trained(tokenizer, THINKS, " yes ") == "<think></think>yes<|end|>"
    assert trained(tokenizer, THINKS, "<think>so</think>yes") == "<think>so</think>yes<|end|>"


def test_the_reply_may_be_the_mark_that_finds_replies(tokenizer: Any) -> None:
    asked = (Message("user", "qzxreplyqzx qzxreplyqzxq"),)
    assert trained(tokenizer, CHANNEL, "qzxreplyqzx", asked) == "(final)qzxreplyqzx<|end|>"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("{{ m['content'] }}", "{{ m['content'] | upper }}"), "leaves out or alters"),
        (("{{ m['content'] }}", "{{ m['content'][:3] }}"), "leaves out or alters"),
        (("{{ eos_token }}", ""), "ends the assistant's turn by no token"),
        (("(final)", "{{ eos_token }}"), "end token into the assistant's turn"),
        (("{{ m['content'] }}", "{{ nothere(m) }}"), "broken: 'nothere' is undefined"),
        (("{{ m['content'] }}", "{{ m['content'] | nothere }}"), "not a valid Jinja template"),
        (("{{ m['content'] }}", "{{ m['content'] / 2 }}"), "broken: unsupported operand"),
        (("{% endfor %}", ""), "not a valid Jinja template"),
        (("{% endfor %}", "{% endfor %}{{ lipsum() }}"), "broken: 'lipsum' is undefined"),
    ],
)
def test_a_template_that_suits_no_dialogue_is_an_error_at_once(
    tokenizer: Any, change: tuple[str, str], complaint: str
) -> None:
    broken = renderer(tokenizer, CHANNEL.replace(*change))
    with pytest.raises(DataError, match=complaint):
        broken.demonstrations([Demonstration(ASKED, "final", "F:1")])


def test_the_words_of_a_refusal_are_the_reason_of_the_drop(tokenizer: Any) -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    context = (Message("system", "s"), *ASKED)
    rows = renderer(tokenizer, strict + PLAIN).demonstrations(
        [Demonstration(context, "a", "F:1"), Demonstration(ASKED, "a", "F:2")]
    )
    assert rows[0] == Rejected("chat template refuses the dialogue: no system role", "F:1")
    assert not isinstance(rows[1], Rejected)


def test_a_template_that_fails_on_one_dialogue_drops_that_one(tokenizer: Any) -> None:
    template = "{% if messages | length > 3 %}{{ 1 / 0 }}{% endif %}" + PLAIN
    context = (*ASKED, Message("assistant", "a"), *ASKED)
    rows = renderer(tokenizer, template).demonstrations([Demonstration(context, "b", "F:1")])
    assert rows == [Rejected("chat template fails on the dialogue: division by zero", "F:1")]


def test_very_long_dialogues_are_dropped(tokenizer: Any) -> None:
    context = (*ASKED, Message("assistant", "a")) * 501 + ASKED
    rows = renderer(tokenizer, PLAIN, train_on="all").demonstrations(
        [Demonstration(context, "b", "F:1")]
    )
    assert rows == [Rejected("over 1,000 turns", "F:1")]


@pytest.mark.parametrize(
    "part",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}"
        "{{ a(60) }}",
    ],
)
def test_a_template_without_end_is_stopped(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(watched, "__defaults__", (0.2, 2**40))
    endless = renderer(tokenizer, part + PLAIN)
    with pytest.raises(DataError, match="to render one dialogue") as caught:
        endless.demonstrations([Demonstration(ASKED, "a", "F:7")])
    assert caught.value.where == "F:7"


def test_work_that_grows_is_stopped() -> None:
    def grow(_: int) -> None:
        kept: list[bytearray] = []
        while True:
            kept.append(bytearray(b"x" * 2**20))

    with pytest.raises(ItemTooCostlyError, match="GiB"):
        watched(grow, [0], seconds=60, most_bytes=2**26)


def test_watched_work_is_done_in_order_and_its_errors_are_raised() -> None:
    assert watched(lambda n: 2 * n, [1, 2, 3]) == [2, 4, 6]
    with pytest.raises(ZeroDivisionError):
        watched(lambda n: 1 // n, [1, 0])


@pytest.mark.parametrize(
    "part",
    [
        "{{ 'a' * 10 ** 11 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ 'a'.ljust(10 ** 11) }}",
        "{{ 'a' | center(10 ** 11) }}",
        "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}"
        "{% endfor %}",
        "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}"
        "{% endfor %}",
        "{% set n = namespace(t='aa') %}{% for i in range(99) %}"
        "{% set n.t = n.t | replace('a', n.t) %}{% endfor %}",
        "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set x %}{{ n.t }}{{ n.t }}"
        "{% endset %}{% set n.t = x %}{% endfor %}",
    ],
)
def test_a_template_cannot_ask_for_gigabytes(part: str) -> None:
    with pytest.raises(BrokenTemplateError, match="in a template"):
        Template(part, {}, datetime.datetime(2026, 1, 1)).render([], to_reply=False)


def test_templates_see_what_transformers_gives_them(tokenizer: Any) -> None:
    template = (
        "{% generation %}{{ messages | tojson }}{% endgeneration %}{{ eos_token ~ 3 ~ tools }}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m.content | trim | length + 2 }}{{ '%s-%d' % (m.role, 7) }}{% endfor %}"
        "{{ ['a', 'b'] | join(', ') }}{{ '{} {}'.format(1, 'x') }}{{ 'ab' * 3 }}{{ 2 ** 10 }}"
        "{{ add_generation_prompt }}{{ bos_token is defined }}{{ namespace(a=1).a }}"
    )
    messages = [{"role": "user", "content": " hä\n"}, {"role": "assistant", "content": "x"}]
    tokenizer.chat_template = template
    made = Template(template, tokenizer.special_tokens_map, datetime.datetime(2026, 1, 1))
    for asks in (False, True):
        assert made.render(messages, to_reply=asks) == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks
        )


def test_the_date_is_that_of_the_run(tmp_path: Path) -> None:
    template = tmp_path / "date.jinja"
    template.write_text("Today: {{ strftime_now('%d %b %Y') }}\n" + PLAIN)
    open_files = Files(tmp_path, byte_tokenizer(tmp_path / "tokenizer"))
    rows = [{"messages": [{"role": "user", "content": c}]} for c in "ab"]
    dated = {"chat_template": str(template), "date": "2026-02-03"}
    source = open_files(prompts=rows, prompt_limit=200, rendering=dated)
    assert source.prompts("ppo", 0, 1)[0].text.startswith("Today: 03 Feb 2026\n")
    assert source.date == "2026-02-03"
    assert (
        open_files(prompts=rows, prompt_limit=200, rendering={"chat_template": "default"}).date
        == ""
    )


@pytest.mark.parametrize(
    ("completions", "ranks", "expected"),
    [
        ([[1], [2], [3]], (1, 2, 3), (1, 2, 3)),
        ([[1], [2], [2]], (1, 2, 3), (1, 2, 2)),
        ([[1], [2], [1]], (1, 2, 3), (1, 1, 1)),  # what stands between them ties, too
        ([[1], [2], [1], [4]], (1, 2, 3, 4), (1, 1, 1, 2)),
        ([[1], [2], [1], [2], [5]], (1, 2, 3, 4, 5), (1, 1, 1, 1, 2)),
        ([[7], [1], [7], [2], [2]], (1, 3, 2, 4, 4), (1, 2, 1, 3, 3)),
        ([[1], [1]], (2, 1), (1, 1)),
    ],
)
def test_equal_completions_tie(
    completions: list[list[int]], ranks: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tied_ranks(completions, ranks) == expected


@pytest.mark.parametrize("context", ["p", ASKED])
def test_completions_that_are_equal_within_the_token_limit(tokenizer: Any, context: Any) -> None:
    render = renderer(tokenizer, PLAIN, max_completion_tokens=4)
    pair = Comparison(context, ("long one", "long two"), (1, 2), "F:1")
    ranking = Comparison(context, ("long one", "long two", "no"), (2, 1, 3), "F:2")
    apart = Comparison(context, ("long", "lone"), (1, 2), "F:3")
    rows = render.comparisons([pair, ranking, apart])
    assert rows[0] == Rejected("completions do not differ within the token limit", "F:1")
    assert not isinstance(rows[1], Rejected)
    assert not isinstance(rows[2], Rejected)
    assert rows[1].ranks == (1, 1, 2)
    assert np.array_equal(rows[1].completions[0], rows[1].completions[1])
    assert rows[2].ranks == (1, 2)


def test_a_row_whose_trained_turns_are_cut_away_is_dropped(tokenizer: Any) -> None:
    context = (*ASKED, Message("assistant", "a", trained=False), Message("user", "x" * 60))
    render = renderer(
        tokenizer, PLAIN, train_on="all", max_prompt_tokens=30, max_completion_tokens=9
    )
    rows = render.demonstrations([Demonstration(context, "late", "F:1")])
    assert rows == [Rejected("no trained turn within the token limit", "F:1")]


def test_a_watched_thread_that_has_ended_uses_no_time() -> None:
    work = _Work(str, [1, 2])
    assert _used(work) == 0.0
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert work.results == ["1", "2"]
    assert _used(work) == 0.0  # its clock is gone
