"""From rows to batches: mixtures, filters, splits and processes, through the whole file source."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_files import Files, account
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.data.files import FileSource
from workers.data.tables.mixture import BLOCK
from workers.data.tokenize.data_sets import DataSet, SetKind
from workers.errors import ConfigError, EmptyDatasetError
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import ANIMALS

PAIRS = [f"{a} {b}" for a in ANIMALS for b in ANIMALS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def files(tmp_path: Path, checkpoint: Path) -> Files:
    return Files(tmp_path, checkpoint)


def demonstrations(pairs: list[str], end: str = ".", **more: str) -> list[dict[str, str]]:
    return [{"prompt": f"repeat : {p} ?", "completion": f"{p} {end}", **more} for p in pairs]


def a_set(files: Files, name: str, kind: SetKind, rows: object, weight: float = 1.0) -> DataSet:
    return DataSet(name, kind, files.write(name, rows), weight=weight)


def texts(source: FileSource, split: str, count: int, start: int = 0) -> list[str]:
    rows = source.demonstrations(split, start, count).tokens.rows()  # type: ignore[arg-type]
    return [source.detokenize(row) for row in rows]


def mixture(files: Files) -> tuple[DataSet, DataSet]:
    kind = SetKind.demonstrations
    return (
        a_set(files, "dots", kind, demonstrations(PAIRS[:60], "."), 3.0),
        a_set(files, "marks", kind, demonstrations(PAIRS[60:130], "?"), 1.0),
    )


def test_sets_are_mixed_in_proportion_to_their_weights(files: Files) -> None:
    source = files(*mixture(files))
    for block in range(2):
        ends = Counter(text[-1] for text in texts(source, "train", BLOCK, block * BLOCK))
        assert ends == {".": 750, "?": 250}
    held = texts(source, "heldout", 1000)
    counts = {name: account(source, name).heldout for name in ("dots", "marks")}
    assert Counter(text[-1] for text in held) == {".": counts["dots"], "?": counts["marks"]}
    assert len(set(held)) == len(held), "no held-out row comes twice"
    assert not set(held) & set(texts(source, "train", 2 * BLOCK))


def test_each_set_is_read_whole_before_it_repeats(files: Files) -> None:
    source = files(*mixture(files))
    taken = texts(source, "train", 3 * BLOCK)
    for name, end in (("dots", "."), ("marks", "?")):
        own = [text for text in taken if text[-1] == end]
        size = account(source, name).train
        assert len(set(own[:size])) == size
        assert set(own[size : 2 * size]) == set(own[:size])


def test_a_shorthand_is_a_set_of_weight_one(files: Files) -> None:
    more = a_set(files, "more", SetKind.demonstrations, demonstrations(PAIRS[60:90], "?"), 3.0)
    source = files(more, demonstrations=demonstrations(PAIRS[:60]))
    assert Counter(text[-1] for text in texts(source, "train", BLOCK)) == {".": 250, "?": 750}


def test_one_pass_over_mixed_rankings(files: Files) -> None:
    def rows(pairs: list[str]) -> list[dict[str, object]]:
        return [{"prompt": p, "completions": ["fox", "owl"], "ranks": [1, 2]} for p in pairs]

    one = a_set(files, "one", SetKind.comparisons, rows(PAIRS[:40]), 1.0)
    two = a_set(files, "two", SetKind.comparisons, rows(PAIRS[40:140]), 1.0)
    source = files(one, two)
    train, held = source.rankings("train"), source.rankings("heldout")
    assert train is not None
    assert held is not None
    sizes = {name: account(source, name) for name in ("one", "two")}
    assert len(train) == sizes["one"].train + sizes["two"].train
    found = Counter(r.source for r in train)
    assert abs(found["one"] - found["two"]) < 30, "weights, not sizes, decide"
    assert Counter(r.source for r in held) == {n: s.heldout for n, s in sizes.items() if s.heldout}
    assert sizes["one"].train_pairs == sizes["one"].train


def test_users_stay_on_one_side(files: Files) -> None:
    # u0 .. u29 wrote five rows each; prompts 0-9 are asked again by the next user
    rows = [
        {"prompt": PAIRS[5 * u + i], "completion": f"{PAIRS[u]} .", "user": f"u{u}"}
        for u in range(30)
        for i in range(6)
    ]
    source = files(demonstrations=rows, feeding={"heldout_fraction": 0.3})
    counted = account(source, "demonstrations")
    by_split = {
        split: set(texts(source, split, size))
        for split, size in (("train", counted.train), ("heldout", counted.heldout))
    }
    # four words a row: two of the prompt, two that name the user
    users = {s: {" ".join(t.split()[2:4]) for t in ts} for s, ts in by_split.items()}
    prompts = {s: {" ".join(t.split()[:2]) for t in ts} for s, ts in by_split.items()}
    assert 3 <= len(users["heldout"]) <= 16
    assert not users["train"] & users["heldout"]
    assert not prompts["train"] & prompts["heldout"]
    leaks = counted.dropped.get("its prompt is held out with another row", 0)
    assert leaks > 0
    assert counted.train + counted.heldout + leaks == counted.read == 180


def test_a_user_is_held_out_in_every_kind(files: Files) -> None:
    users = [f"user {i}" for i in range(60)]
    source = files(
        demonstrations=[
            {"prompt": f"repeat : {PAIRS[i]} ?", "completion": f"{PAIRS[i]} .", "user": user}
            for i, user in enumerate(users)
        ],
        prompts=[{"prompt": PAIRS[i], "user": user} for i, user in enumerate(users)],
    )
    held = {text.removeprefix("repeat : ").split(" ?")[0] for text in texts(source, "heldout", 99)}
    assert held == {p.text for p in source.prompts("heldout", 0, 99)}
    assert held


def test_what_one_kind_alone_must_hold_out_is_no_training_row_of_another(files: Files) -> None:
    # of two prompts one is held out, whatever their hashes; among 40 others it need not be
    for pair in zip(PAIRS[:12:2], PAIRS[1:12:2], strict=True):
        source = files(
            demonstrations=[{"prompt": p, "completion": "fox"} for p in pair],
            prompts=[{"prompt": p} for p in PAIRS[:40]],
            evaluation_prompts=[{"prompt": PAIRS[50]}],
        )
        (held,) = texts(source, "heldout", 9)
        trained = {p.text for p in source.prompts("ppo", 0, 99)}
        assert trained == set(PAIRS[:40]) - {held.removesuffix(" fox")}


def test_a_user_with_an_evaluation_prompt_is_held_out_in_every_kind(files: Files) -> None:
    users = [f"user {i}" for i in range(20)]
    asked = {
        "demonstrations": [{"prompt": p, "completion": "fox"} for p in PAIRS[:20]],
        "rankings": [{"prompt": p, "chosen": "fox", "rejected": "owl"} for p in PAIRS[20:40]],
        "prompts": [{"prompt": p} for p in PAIRS[40:60]],
        "pretraining": [{"text": p} for p in PAIRS[60:80]],
    }
    rows = {
        kind: [row | {"user": user} for row, user in zip(own, users, strict=True)]
        for kind, own in asked.items()
    }
    for user, asking in zip(users, PAIRS[80:90], strict=False):
        number = users.index(user)
        source = files(**rows, evaluation_prompts=[{"prompt": asking, "user": user}])
        held = texts(source, "heldout", 20)
        assert f"{PAIRS[number]} fox" in held
        rankings = source.rankings("heldout") or []
        assert any(PAIRS[20 + number] in source.detokenize(r.sequences.row(0)) for r in rankings)
        assert PAIRS[40 + number] not in {p.text for p in source.prompts("ppo", 0, 99)}
        documents = source.pretraining("heldout", 0, 20).tokens.rows()
        assert PAIRS[60 + number] in {source.detokenize(row) for row in documents}


def test_rows_of_a_user_are_limited(files: Files) -> None:
    rows = [{"prompt": p, "user": f"u{i % 3}"} for i, p in enumerate(PAIRS[:60])]
    rows += [{"prompt": p} for p in PAIRS[60:90]]
    source = files(prompts=rows, feeding={"max_rows_per_user": 7})
    counted = account(source, "prompts")
    assert counted.dropped["more than 7 rows of one user"] == 60 - 21
    kept = source.prompts("ppo", 0, counted.train) + source.prompts("heldout", 0, counted.heldout)
    assert {p.text for p in kept} <= {*PAIRS[:21], *PAIRS[60:90]}


def test_prompts_with_a_long_common_beginning_are_one(files: Files) -> None:
    rows = [{"prompt": f"fox owl bear {p}"} for p in PAIRS[:5]] + [{"prompt": p} for p in PAIRS[:5]]
    short = {"prompt": "fox owl bear"}  # shorter than the beginning that is compared
    source = files(prompts=[short, *rows], rendering={"prefix_characters": 13})
    counted = account(source, "prompts")
    assert counted.dropped == {"shares a long beginning with an earlier row": 4}
    assert counted.train + counted.heldout == 7
    off = files(prompts=[short, *rows])
    assert account(off, "prompts").dropped == {}


def test_rows_of_one_prompt_share_more_than_its_beginning(files: Files) -> None:
    prompts = [f"fox owl bear {p}" for p in PAIRS[:2]] + ["owl"]
    rows = [
        {"prompt": p, "chosen": "fox", "rejected": "owl", "annotator": a}
        for a in ("ann", "bob")
        for p in prompts
    ]
    answers = [{"prompt": p, "completion": c} for p in prompts for c in ("fox", "owl")]
    source = files(rankings=rows, demonstrations=answers, rendering={"prefix_characters": 13})
    rankings = [*(source.rankings("train") or ()), *(source.rankings("heldout") or ())]
    assert Counter(r.annotator for r in rankings) == {"ann": 2, "bob": 2}
    for name, kept in (("rankings", 4), ("demonstrations", 4)):
        counted = account(source, name)
        assert counted.dropped == {"shares a long beginning with an earlier row": 2}
        assert counted.train + counted.heldout == kept


def test_personal_data_is_dropped_from_training_alone(files: Files) -> None:
    rows = [
        {"prompt": f"{p} ?", "completion": f"{p} a@b.org" if i % 2 else p}
        for i, p in enumerate(PAIRS[:60])
    ]
    options = {"rendering": {"find_pii": True}, "feeding": {"drop_pii": True}}
    plain = account(files(demonstrations=rows), "demonstrations")
    source = files(demonstrations=rows, **options)
    counted = account(source, "demonstrations")
    assert counted.heldout == plain.heldout, "held-out rows stay"
    gone = counted.dropped["personal data: e-mail address"]
    assert counted.train + gone == plain.train
    clean = {p for i, p in enumerate(PAIRS[:60]) if not i % 2}
    trained = {text.split(" ?")[0] for text in texts(source, "train", counted.train)}
    assert trained <= clean
    assert len(trained) == counted.train


def test_pretraining_text_with_personal_data_goes_with_all_its_windows(files: Files) -> None:
    long = " ".join(PAIRS[:30])
    rows = [{"text": f"{long} {p}"} for p in PAIRS[:20]] + [{"text": f"{long} 8.8.8.8 fox"}]
    rows += [{"text": f"{long} 8.8.4.4 {p}"} for p in PAIRS[:9]]
    source = files(pretraining=rows, rendering={"find_pii": True}, feeding={"drop_pii": True})
    counted = account(source, "pretraining")
    windows = 3  # of 24 tokens each, for 60 to 64 words between two special tokens
    assert counted.dropped["personal data: IP address"] % windows == 0
    assert (counted.train + counted.heldout) % windows == 0
    assert counted.read == 30 * windows


@pytest.mark.parametrize("dialogue", [False, True])
def test_evaluation_prompts_are_the_same_in_any_dress(files: Files, dialogue: bool) -> None:
    asked = [
        {"messages": [{"role": "user", "content": p}]} if dialogue else {"prompt": p}
        for p in PAIRS[:3]
    ]
    source = files(
        evaluation_prompts=asked,
        prompts=[{"prompt": p} for p in PAIRS[:10]],
        prompt_limit=64,
        rendering={"chat_template": "default"},
    )
    assert account(source, "prompts").dropped == {"also an evaluation prompt": 3}
    assert {p.text for p in source.prompts("ppo", 0, 7)} == set(PAIRS[3:10])
    held = source.prompts("heldout", 0, 9)
    assert [PAIRS[i] in p.text for i, p in enumerate(held)] == [True] * 3
    ids = [p.id for p in (*held, *source.prompts("ppo", 0, 7))]
    assert len(set(ids)) == 10


def dialogue(*texts: str, system: str = "") -> list[dict[str, str]]:
    turns = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


def test_dialogues_that_begin_with_an_evaluation_prompt_are_no_training_rows(files: Files) -> None:
    first, second, *others = PAIRS[:40]
    talk = (first, "fox", second)  # an evaluation prompt of three turns
    leaking = [
        dialogue(*talk, "owl", "bear", "fox"),
        dialogue(second, "fox", "owl", "bear"),
        dialogue(second, "fox", "owl", "bear", system="wolf"),
        dialogue(second, "fox", system="wolf"),
    ]
    # these begin otherwise, or with a part of an evaluation prompt
    clean = [dialogue(first, "owl"), dialogue(first, "owl", second, "owl")]
    clean += [dialogue(p, "fox", second, "owl") for p in others]
    source = files(
        evaluation_prompts=[{"messages": dialogue(*talk)}, {"prompt": second}],
        demonstrations=[{"messages": turns} for turns in (*leaking, *clean)],
        rankings=[
            {"chosen": [*turns[:-1], {"role": "assistant", "content": "mouse"}], "rejected": turns}
            for turns in (*leaking, *clean)
        ],
        prompts=[{"messages": turns} for turns in (*leaking[:3], *clean)],
        prompt_limit=64,
        rendering={"chat_template": "default"},
    )
    for name, gone in (("demonstrations", 4), ("rankings", 4), ("prompts", 3)):
        counted = account(source, name)
        reason = "a dialogue that begins with an evaluation prompt"
        assert counted.dropped[reason] == gone, name
        assert counted.train + counted.heldout == counted.read - sum(counted.dropped.values())
    assert account(source, "demonstrations").read == len(leaking) + len(clean)


def test_nor_are_those_that_begin_with_a_held_out_prompt(files: Files) -> None:
    asked = PAIRS[:60]
    source = files(
        prompts=[{"prompt": p} for p in asked],
        demonstrations=[{"messages": dialogue(p, "fox", "owl", "bear")} for p in asked],
        prompt_limit=64,
        rendering={"chat_template": "default"},
    )
    counted = account(source, "demonstrations")
    held = {p.text for p in source.prompts("heldout", 0, 99)}
    begun = {" ".join(text.split()[:2]) for text in texts(source, "train", counted.train)}
    rest = {" ".join(text.split()[:2]) for text in texts(source, "heldout", counted.heldout)}
    assert len(held) > 2
    assert begun == set(asked) - held - rest


def test_any_number_of_processes_gives_the_same_rows(files: Files) -> None:
    sets = mixture(files)
    more = {
        "prompts": [{"prompt": p} for p in (*PAIRS[:100], " ", "fox " * 99)] * 4,
        "rankings": [
            {"prompt": p, "completions": ["fox", "owl", "bear " * 9], "ranks": [2, 1, 1]}
            for p in PAIRS[:50]
        ],
        "pretraining": [{"text": " ".join(PAIRS[i : i + 9])} for i in range(20)],
    }
    one, two = (files(*sets, feeding={"workers": n, "call_seconds": 120.0}, **more) for n in (1, 2))
    assert one.accounts == two.accounts
    assert account(two, "prompts").dropped["repeated"] == 300
    for read in (
        lambda s: s.demonstrations("train", 5, 400).tokens.values,
        lambda s: s.demonstrations("train", 5, 400).targets.values,
        lambda s: s.pretraining("train", 0, 60).tokens.values,
        lambda s: np.concatenate([r.sequences.values for r in s.rankings("train")]),
    ):
        assert np.array_equal(read(one), read(two))
    assert one.prompts("ppo", 0, 200) == two.prompts("ppo", 0, 200)


def test_length_groups_hold_the_same_rows(files: Files) -> None:
    rows = [
        {"prompt": PAIRS[i] + " fox" * (i % 13), "completion": "owl", "user": str(i)}
        for i in range(200)
    ]
    grouped = {"length_grouped": True, "length_group_batches": 8}
    by_batch = {SetKind.demonstrations: 8}
    plain = files(demonstrations=rows)
    source = files(demonstrations=rows, feeding={**grouped, "batch_rows": by_batch})
    size = account(source, "demonstrations").train
    whole = source.demonstrations("train", 0, size)
    assert Counter(texts(source, "train", size)) == Counter(texts(plain, "train", size))
    waste = [
        sum(8 * max(lengths[i : i + 8]) for i in range(0, size - size % 8, 8))
        / sum(lengths[: size - size % 8])
        for lengths in (
            each.demonstrations("train", 0, size).tokens.lengths.tolist()
            for each in (source, plain)
        )
    ]
    assert waste[0] < 1.15 < 1.3 < waste[1]
    part = files(
        demonstrations=rows, prompts=rows[:50], feeding={**grouped, "batch_rows": by_batch}
    )
    others = files(demonstrations=rows, prompts=rows[:50])
    assert part.prompts("ppo", 0, 80) == others.prompts("ppo", 0, 80)  # no other kind is grouped
    again = part.demonstrations("train", 100, 50)
    assert np.array_equal(again.tokens.values, whole.tokens.select(range(100, 150)).values)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(PAIRS[:12]), min_size=3, max_size=30))
def test_every_row_read_is_trained_on_held_out_or_dropped(pairs: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        build_tokenizer().save_pretrained(path / "tokenizer")
        rows = [{"prompt": p, "user": p[:3]} for p in pairs]
        try:
            source = Files(path, path / "tokenizer")(
                prompts=rows, feeding={"max_rows_per_user": 2, "heldout_fraction": 0.4}
            )
        except EmptyDatasetError:
            return
        counted = account(source, "prompts")
        assert counted.read == len(rows)
        assert counted.train + counted.heldout + sum(counted.dropped.values()) == len(rows)


def test_sets_that_cannot_be_mixed(files: Files) -> None:
    good = a_set(files, "good", SetKind.demonstrations, demonstrations(PAIRS[:20]))
    for weight, message in ((0.0, "positive"), (1e-6, "too small")):
        with pytest.raises(ConfigError, match=message):
            files(good, DataSet("bad", SetKind.demonstrations, good.path, weight=weight))
    empty = a_set(files, "empty", SetKind.demonstrations, [{"prompt": " ", "completion": "fox"}])
    with pytest.raises(EmptyDatasetError) as caught:
        files(good, empty)
    assert "data.sets.empty" in caught.value.where
    assert "1 x empty prompt" in caught.value.fix


def test_a_bad_line_can_be_a_counted_drop(files: Files) -> None:
    lines = [json.dumps(row) for row in demonstrations(PAIRS[:20])]
    lines[3] = '{"prompt": "fox"'
    raw = "\n".join(lines).encode()
    source = files(demonstrations=raw, feeding={"on_bad_line": "drop"})
    counted = account(source, "demonstrations")
    assert counted.dropped == {"bad line": 1}
    assert counted.read == 20


def test_rankings_of_one_prompt_share_its_name(files: Files) -> None:
    rows = [
        {"prompt": PAIRS[i % 7], "completions": ["fox", "owl"], "ranks": [1, 2], "annotator": a}
        for i in range(21)
        for a in ("ann", "bob")
    ]
    source = files(rankings=rows)
    rankings = [*(source.rankings("train") or ()), *(source.rankings("heldout") or ())]
    assert Counter(Counter(r.prompt_id for r in rankings).values()) == {6: 7}
    assert Counter(r.annotator for r in rankings) == {"ann": 21, "bob": 21}
