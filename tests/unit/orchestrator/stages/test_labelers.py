"""Labelers: each is found by its name, ranks, and refuses what it cannot do before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import composed
from fakes.session import Run

from orchestrator.preflight.user_functions import check_functions, check_own_parts
from orchestrator.stages.labels.labeler import LABELERS, find_labeler, ranks_of
from orchestrator.stages.labels.tasks import Task
from workers.errors import ConfigError

STAGES = "stages=[pretrain,sft,label,reward_model]"


def tasks_of(run: Run) -> list[Task]:
    texts = [["a cat .", "the dog is big .", "no"], ["yes", "yes it is"]]
    prompts = run.source.prompts("reward_model", 0, 2)
    return [
        Task(p, t, [[1]] * len(t), ["sft"] * len(t)) for p, t in zip(prompts, texts, strict=True)
    ]


def test_the_best_number_has_rank_1_and_equal_ones_tie() -> None:
    assert ranks_of([0.5, 2.0, 0.5, -1.0]) == (2, 1, 2, 3)


def test_the_gold_labeler_ranks_as_the_source_does(tmp_path: Path) -> None:
    run = Run(tmp_path)
    tasks = tasks_of(run)
    found = find_labeler("gold").rank(run.session, "label", tasks)
    expected = run.source.label([t.prompt for t in tasks], [t.texts for t in tasks])
    assert [[*verdict.ranks] for verdict in found.given] == expected
    assert not found.failed


def test_a_function_ranks_and_what_it_cannot_tell_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("longest.py").write_text(
        "def label(prompts, completions):\n"
        "    return [[len(t) for t in c] if len(c) > 2 else None for c in completions]\n"
    )
    run = Run(tmp_path)
    run.config.label.function = "longest:label"
    found = find_labeler("function").rank(run.session, "label", tasks_of(run))
    assert [(v.task, v.ranks, v.annotator) for v in found.given] == [
        (0, (2, 1, 3), "longest:label")
    ]
    assert found.failed == {1: "labeler function returned nothing (None) for one item"}


def test_the_numbers_of_a_function_are_kept_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.stages.labels.labelers.function._BATCH", 1)
    Path("counted.py").write_text(
        "def label(prompts, completions):\n"
        "    open('asked', 'a').write('x' * len(prompts))\n"
        "    return [[len(t) for t in c] for c in completions]\n"
    )
    run = Run(tmp_path)
    run.config.label.function = "counted:label"
    tasks, labeler = tasks_of(run), find_labeler("function")
    with monkeypatch.context() as patched:  # ends after the first of two batches
        told = iter([None, KeyError("stopped")])

        def stop(_: object) -> None:
            if (error := next(told)) is not None:
                raise error

        patched.setattr("orchestrator.session.session.Session.stop_if_asked", stop)
        with pytest.raises(KeyError):
            labeler.rank(run.session, "label", tasks)
    assert Path("asked").read_text() == "x"
    found = labeler.rank(run.session, "label", tasks)
    assert [(v.task, v.ranks) for v in found.given] == [(0, (2, 1, 3)), (1, (2, 1))]
    assert Path("asked").read_text() == "xx"


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["label.labeler=god"], "label.labeler", "did you mean gold"),
        (["label.labeler=function"], "label.function", "no function is named"),
        (["label.labeler=nowhere:LABELER"], "label.labeler", "nowhere"),
        (["label.labeler=json:dumps"], "label.labeler", "no labeler"),
    ],
)
def test_labelers_that_cannot_rank_are_refused_before_a_run(
    words: list[str], where: str, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_own_parts(composed("+experiment=pocket_tiny", STAGES, *words))
    assert caught.value.where == where
    assert what in f"{caught.value.what} {caught.value.fix}"


def test_a_function_that_cannot_be_imported_is_refused_before_a_run() -> None:
    words = ("label.labeler=function", "label.function=nowhere:label")
    with pytest.raises(ConfigError) as caught:
        check_functions(composed("+experiment=pocket_tiny", STAGES, *words))
    assert caught.value.where == "label.function"


def test_only_the_pocket_world_has_a_gold_labeler() -> None:
    words = ("data=files", "data.files.prompts=P", "model.checkpoints.sft=S")
    with pytest.raises(ConfigError, match="only the pocket world"):
        check_own_parts(composed("+experiment=pocket_tiny", "stages=[label]", *words))


def test_every_file_is_a_labeler() -> None:
    assert set(LABELERS.names()) >= {"function", "gold", "people"}
    for name in LABELERS.names():
        assert callable(find_labeler(name).rank)
