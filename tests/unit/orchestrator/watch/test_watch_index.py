"""Filters and orders of recorded sequences, against plain Python over the same records."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from fakes.watched import folder_at, many, read, sample, write_answers, write_samples

from orchestrator.run_files.samples import RolloutSample
from orchestrator.watch.index import Index
from orchestrator.watch.sequences import PAGE, Filter, Sequence, prompt_key, read_filter


def index_of(samples: list[RolloutSample]) -> Index:
    index = Index()
    index.add(Sequence.of_rollout(each) for each in samples)
    return index


def every(index: Index, wanted: Filter) -> list[int]:
    """The ids of all sequences that a filter lets through, page by page."""
    first = index.find(wanted)
    pages = [index.find(Filter(**{**_fields(wanted), "page": n + 1})) for n in range(first.pages)]
    found = [f.sequence.number for page in pages for f in page.shown]
    assert len(found) == first.total
    return found


def _fields(wanted: Filter) -> dict:
    return {name: getattr(wanted, name) for name in Filter.__dataclass_fields__}


SAMPLES = list(many(600, 80, seed=3))
Case = tuple[Filter, Callable[[RolloutSample], bool]]
CASES: list[Case] = [
    (Filter(), lambda s: True),
    (Filter(text="OWL FOX"), lambda s: "owl fox" in f"{s.prompt}\n{s.response}".lower()),
    (Filter(text="question 7:"), lambda s: "question 7:" in s.prompt.lower()),
    (Filter(step_from=2, step_to=2), lambda s: s.step == 2),
    (Filter(version="1"), lambda s: s.policy_version == 1),
    (Filter(finish="length"), lambda s: s.finish == "length"),
    (Filter(reward_from=0.5), lambda s: s.score >= 0.5),
    (Filter(reward_to=-0.5, kl_from=1.0), lambda s: s.score <= -0.5 and s.kl >= 1),
    (Filter(kl_to=2.5), lambda s: s.kl <= 2.5),
    (Filter(length_from=100, length_to=200), lambda s: 100 <= (s.tokens or 0) <= 200),
    (Filter(dropped="*"), lambda s: bool(s.dropped)),
    (Filter(dropped="-", finish="stop"), lambda s: not s.dropped and s.finish == "stop"),
    (Filter(dropped="the reward model did not answer"), lambda s: math.isnan(s.score)),
    (Filter(stage="ppo_ptx"), lambda s: False),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "holds"), CASES)
def test_a_filter_lets_through_what_plain_python_does(
    wanted: Filter, holds: Callable[[RolloutSample], bool]
) -> None:
    index = index_of(SAMPLES)
    assert sorted(every(index, wanted)) == [s.id for s in SAMPLES if holds(s)]
    index.close()


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("best", lambda s: -s.score), ("worst", lambda s: s.score), ("kl", lambda s: -s.kl),
        ("long", lambda s: -s.tokens), ("short", lambda s: s.tokens), ("old", lambda s: s.id),
        ("new", lambda s: -s.id),
    ],
)  # fmt: skip
def test_an_order_puts_what_was_not_measured_last(order: str, key: Callable) -> None:
    index = index_of(SAMPLES)
    found = every(index, Filter(order=order))
    by_id = {s.id: s for s in SAMPLES}
    keys = [key(by_id[i]) for i in found]
    known = [k for k in keys if not math.isnan(k)]
    assert known == sorted(known)
    assert all(math.isnan(k) for k in keys[len(known) :])
    index.close()


def test_search_folds_letters_beyond_ascii_and_reads_percent_as_itself() -> None:
    index = index_of([
        sample(0, response="STRASSE ÄÖÜ"), sample(1, response="100% sure_thing"),
        sample(2, response="1000 sure things"),
    ])  # fmt: skip
    assert every(index, Filter(text="äöü")) == [0]
    assert every(index, Filter(text="straße")) == [0]
    assert every(index, Filter(text="0% ")) == [1]
    assert every(index, Filter(text="sure_t")) == [1]
    assert every(index, Filter(text="'; DROP TABLE sequence; --")) == []
    index.close()


def test_half_a_surrogate_pair_and_a_zero_character_are_kept_visible() -> None:
    index = index_of([sample(0, response="a\ud800b\x00c", prompt="\udfff")])
    (found,) = index.find(Filter()).shown
    assert found.sequence.response == "a\\ud800b\x00c"
    assert found.sequence.prompt == "\\udfff"
    assert index.find(Filter(text="\ud800")).total == 1
    index.close()


def test_pages_do_not_overlap_and_a_page_too_far_is_the_last() -> None:
    index = index_of([sample(n) for n in range(2 * PAGE + 3)])
    pages = [index.find(Filter(page=n)) for n in (1, 2, 3, 9)]
    assert [len(p.shown) for p in pages] == [PAGE, PAGE, 3, 3]
    assert [p.page for p in pages] == [1, 2, 3, 3]
    assert len({f.id for p in pages[:3] for f in p.shown}) == 2 * PAGE + 3
    index.close()


def test_a_result_is_asked_again_when_sequences_have_come() -> None:
    index = index_of([sample(0)])
    assert index.find(Filter(text="cat")).total == 1
    index.add([Sequence.of_rollout(sample(12))])
    assert index.find(Filter(text="cat")).total == 2
    index.clear()
    assert index.find(Filter(text="cat")).total == 0
    index.close()


def test_responses_to_one_prompt_are_found_together() -> None:
    index = index_of([sample(n) for n in range(9)])
    key = index.find(Filter(order="old")).shown[1].prompt_key
    assert [f.sequence.number for f in index.of_prompt(key, 100)] == [1, 4, 7]
    assert index.of_prompt(key + 1, 100) == []
    index.close()


def test_the_query_of_a_filter_gives_the_same_filter_again() -> None:
    wanted = Filter(text="ä&b=c d", reward_from=-0.25, step_to=3, dropped="*", order="kl", page=2)
    pairs = dict(pair.split("=", 1) for pair in wanted.query(2).split("&"))
    again, ignored = read_filter({k: unquote_plus(v) for k, v in pairs.items()})
    assert (again, ignored) == (wanted, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("reward_from", "much"), ("kl_to", "nan"), ("step_from", "inf"), ("order", "id; DROP"),
     ("page", "0"), ("page", "-1"), ("length_to", "1e999"), ("page", "x" * 10_000)],
)  # fmt: skip
def test_what_cannot_be_used_is_ignored_and_said(name: str, value: str) -> None:
    found, (sentence,) = read_filter({name: value, "text": "a"})
    assert found == Filter(text="a")
    assert sentence.startswith(f"{name} is ignored: ")
    assert len(sentence) < 300


def test_a_folder_is_read_as_it_grows(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "run")
    write_samples(folder, [sample(n) for n in range(4)])
    write_answers(folder, [
        {"id": 0, "prompt": "Which is 1?", "answers": {"sft": "A cat.", "ppo": "A dog."}},
        {"id": 1, "messages": [{"role": "user", "content": "Hi."}], "answers": {"sft": "Yes."}},
    ])  # fmt: skip
    followed = read(folder)
    assert followed.index.count == 7
    found = followed.index.find(Filter(version="ppo")).shown[0]
    assert (found.sequence.stage, found.sequence.response) == ("evaluate", "A dog.")
    rows = followed.index.of_prompt(found.prompt_key, 10)
    assert [f.sequence.version for f in rows] == ["0", "sft", "ppo"]
    write_samples(folder, [sample(4)])
    followed.look()
    assert followed.index.count == 8
    folder.rollouts.write_text("")  # the run starts again
    followed.look()
    assert followed.index.count == 3
    followed.close()


def test_samples_of_earlier_versions_have_a_length_in_characters() -> None:
    old = RolloutSample("ppo", 1, 5, "a", "four", 0.5, 0.1, "stop", 2)
    new = Sequence.of_rollout(old)
    assert (new.length, new.in_tokens, new.dropped) == (4, False, "")


def test_random_bytes_of_a_prompt_key_stay_within_sqlites_integers() -> None:
    rng = random.Random(1)
    keys = [prompt_key("".join(chr(rng.randrange(32, 1000)) for _ in range(9))) for _ in range(999)]
    assert len(set(keys)) == 999
    assert all(0 <= key < 1 << 63 for key in keys)
