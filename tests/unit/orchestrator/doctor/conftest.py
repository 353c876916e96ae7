"""Subjects of checks, with answers of child processes that the tests write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from composing import composed

from orchestrator.doctor.children import Absent
from orchestrator.doctor.subject import Subject, make_subject
from workers.errors import RehearsalError


class Told:
    """Answers by step; an error is raised."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def of(self, step: str) -> Any:
        answer = self._answers[step]
        if isinstance(answer, RehearsalError):
            raise answer
        return answer


@pytest.fixture
def subject() -> Callable[..., Subject]:
    """The subject of a command line; `torch` and `ray` are answers by step."""

    def make(
        *arguments: str,
        torch: Mapping[str, Any] | None = None,
        ray: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> Subject:
        told = [Told(each) if each is not None else Absent() for each in (torch, ray, engine)]
        return make_subject(composed(*arguments), *told)

    return make
