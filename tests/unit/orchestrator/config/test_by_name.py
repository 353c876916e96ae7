"""Records are filled by the names of their fields, and a field without a source is an error."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from orchestrator.config.by_name import from_sections
from orchestrator.config.engines import Offload, TrainerConfig
from orchestrator.config.model import LoraConfig


@dataclass(frozen=True)
class Spec:
    zero_stage: int
    offload: str
    rank: int = 8  # a default is no source
    device: str = "cpu"


TRAINER = TrainerConfig(zero_stage=3, offload=Offload.parameters)


def test_fields_are_the_keys_of_their_names_or_derived() -> None:
    spec = from_sections(Spec, TRAINER, LoraConfig(rank=5), device="cuda")
    assert spec == Spec(zero_stage=3, offload="parameters", rank=5, device="cuda")


@dataclass(frozen=True)
class Target:
    target: tuple[str, ...]


def test_a_list_becomes_a_tuple() -> None:
    assert from_sections(Target, LoraConfig(target=["a", "b"])) == Target(("a", "b"))


def test_a_derived_field_takes_the_place_of_the_key() -> None:
    spec = from_sections(Spec, TRAINER, rank=4, device="cpu", zero_stage=2)
    assert (spec.zero_stage, spec.rank) == (2, 4)


@pytest.mark.parametrize(
    ("sections", "derived", "says"),
    [
        ((TRAINER,), {"device": "cpu"}, r"Spec.rank is neither derived nor in TrainerConfig"),
        ((TRAINER, LoraConfig(), LoraConfig()), {"device": "cpu"}, r"Spec.rank is in several of"),
        ((TRAINER, LoraConfig()), {"device": "cpu", "colour": 1}, r"colour"),
    ],
)
def test_a_field_without_one_source_is_refused(
    sections: tuple[object, ...], derived: dict[str, object], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        from_sections(Spec, *sections, **derived)
