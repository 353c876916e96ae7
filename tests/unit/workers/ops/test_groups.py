"""Baselines and deviations of the samples of a prompt."""

from __future__ import annotations

import pytest
import torch

from workers.ops import group_deviations, less_group_mean, less_others_mean

# Groups of 3 and 2, mixed: 1, 2, 6 and 4, 10.
VALUES = torch.tensor([1.0, 4.0, 2.0, 10.0, 6.0], dtype=torch.float64)
GROUP = torch.tensor([0, 1, 0, 1, 0])


def test_a_value_less_the_mean_of_its_group() -> None:
    assert less_group_mean(VALUES, GROUP).tolist() == [-2.0, -3.0, -1.0, 3.0, 3.0]


def test_a_value_less_the_mean_of_the_others() -> None:
    # The first is 1 less the mean of 2 and 6, the second 4 less 10.
    assert less_others_mean(VALUES, GROUP).tolist() == [-3.0, -6.0, -1.5, 6.0, 4.5]


def test_the_deviation_is_that_of_a_sample() -> None:
    # (4 + 1 + 9) / 2 = 7 and (9 + 9) / 1 = 18
    found = group_deviations(VALUES, GROUP)
    assert found.square().tolist() == pytest.approx([7.0, 18.0, 7.0, 18.0, 7.0])


def test_leave_one_out_is_the_difference_to_the_mean_times_g_over_g_minus_1() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    group = torch.arange(8).repeat_interleave(5)
    expected = less_group_mean(values, group) * 5 / 4
    assert torch.allclose(less_others_mean(values, group), expected, atol=1e-14)


def test_a_single_sample_has_no_baseline() -> None:
    alone, one = torch.tensor([0, 1, 0]), VALUES[:3]
    assert less_group_mean(one, alone).tolist() == [-0.5, 0.0, 0.5]
    for function in (less_others_mean, group_deviations):
        with pytest.raises(ValueError, match="single sample"):
            function(one, alone)
    with pytest.raises(ValueError, match=r"need \(B,\)"):
        less_group_mean(VALUES, GROUP[:3])


def test_no_samples_give_no_numbers() -> None:
    for function in (less_group_mean, less_others_mean, group_deviations):
        assert function(VALUES[:0], GROUP[:0]).tolist() == []
