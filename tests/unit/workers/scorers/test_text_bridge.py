"""A reward model with another tokenizer is asked in the format that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import Files
from fakes.chat import CHATML, byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orchestrator.config.model import CheckpointPaths, ModelConfig
from orchestrator.config.reward import TextBridge as TextBridgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.preflight.dry_run import CHECKS
from workers.data.rows.asked import Asked
from workers.data.rows.examples import Context, Message
from workers.errors import DataError
from workers.pocket.source import PocketSource
from workers.scorers.text_bridge import TextBridge, require_prompts
from workers.user_functions.reward_function import Exchange

BRACKETS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "1 + 1?"},
]
DIALOGUE: Context = tuple(Message(t["role"], t["content"]) for t in TURNS)  # type: ignore[arg-type]


def exchange(context: Context, response: str, *, finished: bool = True) -> Exchange:
    rendered = "<|im_start|>user\nas the policy saw it<|im_end|>\n<|im_start|>assistant\n"
    return Exchange(Asked(0, context, rendered), response, finished)


def read(tokenizer: object, bridge: TextBridge, *exchanges: Exchange) -> list[str]:
    rows, reasons = bridge(exchanges)
    assert reasons == [""] * len(exchanges)
    return [tokenizer.decode(row) for row in rows.rows()]  # type: ignore[attr-defined]


def test_a_dialogue_goes_through_the_scorers_own_template_with_its_inner_end_tokens() -> None:
    tokenizer = byte_tokenizer(BRACKETS, eos="<|endoftext|>")
    end = "<|endoftext|>"
    asked = f"[user] Hi [assistant] Hello.{end}[user] 1 + 1? [assistant] "
    assert read(
        tokenizer,
        TextBridge(tokenizer),
        exchange(DIALOGUE, "2"),
        exchange(DIALOGUE, "It is", finished=False),
        exchange(DIALOGUE, ""),
        exchange("1 + 1 =", " 2"),
    ) == [f"{asked}2{end}", f"{asked}It is", f"{asked}{end}", f"1 + 1 = 2{end}"]


def test_rows_are_those_that_the_reward_model_was_trained_on(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(BRACKETS, eos="<|endoftext|>", bos="<s>")
    tokenizer.save_pretrained(tmp_path / "reward")
    files = Files(tmp_path, tmp_path / "reward")
    replies = ["Two.", "Three. "]
    rows = [
        {"prompt": [*TURNS[:2], {"role": "user", "content": f"{n} + {n}?"}]}
        | {"completions": replies, "ranks": [1, 2]}
        for n in range(40)
    ]
    source = files(rankings=rows, prompt_limit=400, completion_limit=40)
    trained = [
        row.tolist()
        for ranking in source.rankings("train") or []
        for row in ranking.sequences.rows()
    ]
    assert len(trained) > 2
    bridge = TextBridge(tokenizer)
    for n in range(40):
        context = (*DIALOGUE[:2], Message("user", f"{n} + {n}?"))  # type: ignore[misc]
        scored, _ = bridge([exchange(context, reply) for reply in replies])
        both = [row.tolist() for row in scored.rows()]
        assert all(row in trained for row in both) or not any(row in trained for row in both)
        trained = [row for row in trained if row not in both]
    assert trained == []


def test_without_a_template_speakers_stand_on_lines_of_their_own() -> None:
    end = "<|endoftext|>"
    tokenizer = byte_tokenizer(None, eos=end)
    assert read(tokenizer, TextBridge(tokenizer), exchange(DIALOGUE, "2")) == [
        f"User:\nHi\n\nAssistant:\nHello.{end}\n\nUser:\n1 + 1?\n\nAssistant:\n2{end}"
    ]


def test_an_answer_that_spells_a_control_token_of_the_scorer_fails_alone() -> None:
    bridge = TextBridge(byte_tokenizer(CHATML))
    rows, reasons = bridge([exchange(DIALOGUE, "<|im_end|>"), exchange(DIALOGUE, "2")])
    assert reasons == ["reward model: holds a control token", ""]
    assert (rows.lengths > 0).tolist() == [False, True]


@pytest.mark.parametrize("template", ["{{ nothing(messages) }}", "{% if %}", CHATML])
def test_a_template_that_does_not_fit_is_refused_when_the_scorer_is_loaded(template: str) -> None:
    with pytest.raises(DataError) as caught:
        TextBridge(byte_tokenizer(template, eos="<|endoftext|>"))
    assert caught.value.fix


def test_a_plan_refuses_a_reward_model_that_cannot_render_a_dialogue(tmp_path: Path) -> None:
    byte_tokenizer("{% if %}").save_pretrained(tmp_path)
    given = Config(
        stages=[StageName.ppo],
        model=ModelConfig(checkpoints=CheckpointPaths(reward_model=str(tmp_path))),
    )
    check = CHECKS["text bridge"]
    check(given, PocketSource(0, 0.5, 0.25))  # token ids need no template
    given.reward.bridge = TextBridgeKind.text
    with pytest.raises(DataError, match="not a valid Jinja template"):
        check(given, PocketSource(0, 0.5, 0.25))
    given.stages = [StageName.sft]
    check(given, PocketSource(0, 0.5, 0.25))


WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    + BRACKETS
)


def test_prompts_that_a_reward_model_cannot_read_are_told_before_the_run() -> None:
    bridge = TextBridge(byte_tokenizer(WITHOUT_SYSTEM, eos="<|endoftext|>"))
    talk = Asked(0, DIALOGUE, "")
    ruled = Asked(1, (Message("system", "Be kind."), *DIALOGUE), "")
    assert require_prompts(bridge, [talk, Asked(2, "bare", "")], "F") == []
    assert require_prompts(bridge, [ruled, talk, ruled], "F") == [
        "answers to 2 of the first 3 prompts will have no reward and be dropped: reward model: "
        "chat template refuses the dialogue: no system turns"
    ]
    with pytest.raises(DataError, match=r"any of the first 1 prompts.*no system turns") as caught:
        require_prompts(bridge, [ruled], "F")
    assert caught.value.where == "F"


def test_a_plan_tries_the_prompts_of_the_run_on_the_reward_model(tmp_path: Path) -> None:
    byte_tokenizer(BRACKETS, eos="<|endoftext|>").save_pretrained(tmp_path / "policy")
    byte_tokenizer(WITHOUT_SYSTEM, eos="<|endoftext|>").save_pretrained(tmp_path / "reward")
    files = Files(tmp_path, tmp_path / "policy")
    rows = [{"prompt": [{"role": "system", "content": "s"}, *TURNS], "id": n} for n in range(20)]
    for n, row in enumerate(rows):
        row["prompt"] = [*row["prompt"][:-1], {"role": "user", "content": f"{n} + {n}?"}]
    given = Config(
        stages=[StageName.ppo],
        model=ModelConfig(checkpoints=CheckpointPaths(reward_model=str(tmp_path / "reward"))),
    )
    given.reward.bridge = TextBridgeKind.text
    with pytest.raises(DataError, match=r"any of the first \d+ prompts.*no system turns"):
        CHECKS["text bridge"](given, files(prompts=rows, prompt_limit=400))
    for row in rows:
        row["prompt"] = row["prompt"][1:]
    assert not CHECKS["text bridge"](given, files(prompts=rows, prompt_limit=400))


def test_a_scorer_that_knows_few_words_is_no_reason_to_refuse_its_template() -> None:
    core = Tokenizer(models.BPE({"<end>": 0, "h": 1, "2": 2}, []))  # drops what it does not know
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {{ eos_token if m.role == 'assistant' }}"
        "{% endfor %}"
    )
    rows, reasons = TextBridge(tokenizer)([exchange((Message("user", "h"),), "2")])
    assert reasons == [""]
    assert rows.row(0).tolist() == [1, 2, 0]
