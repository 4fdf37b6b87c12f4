from dataclasses import replace

import pytest

from training.config import PLAIN_SETTINGS, TrainingConfig
from training.fit import plan

LAPTOP = plan.Machine("tensorflow", None, cores=2, memory_mib=24_000)
WITH_GPU = plan.Machine("jax", "H100", cores=16, memory_mib=128_000)


def to_dict(*choices):
    return {choice.name: choice.value for choice in choices}


@pytest.mark.parametrize(
    ("sides", "machine", "expected"),
    [
        ([100] * 60, LAPTOP, (64, 2048)),
        ([63] * 60, plan.Machine("tensorflow", None, 2, 4_000), (32, 500)),
        ([10] * 60, LAPTOP, (32, 2048)),  # the smallest size
        ([20] * 29 + [1000] * 31, LAPTOP, (64, 2048)),  # the median photo counts, not the smallest
        ([100] * 60, WITH_GPU, (64, 2048)),
        ([1000] * 60, WITH_GPU, (128, 2048)),
    ],
)
def test_image_size_and_photo_memory_follow_photos_and_machine(sides, machine, expected):
    assert tuple(to_dict(*plan.choose_image_size(sides, machine)).values()) == expected


@pytest.mark.parametrize(
    ("photos", "image_size", "machine", "expected"),
    [
        (50, 64, LAPTOP, ("cpu", 16, False)),
        (7_180, 64, plan.Machine("tensorflow", None, 32, 128_000), ("cpu", 32, False)),
        (7_180, 128, WITH_GPU, ("gpu", 64, True)),
        (7_180, 256, WITH_GPU, ("gpu", 32, True)),
        (60, 64, WITH_GPU, ("gpu", 16, True)),  # at least two batches per epoch
        (7_180, 64, plan.Machine("jax", None, 2, 24_000), ("cpu", 16, True)),
    ],
)
def test_networks_batch_and_compiler_follow_the_machine(photos, image_size, machine, expected):
    assert tuple(to_dict(*plan.choose_networks(photos, image_size, machine)).values()) == expected


@pytest.mark.parametrize(
    ("photos", "step_s", "machine", "flags", "steps"),
    [
        (7_180, 0.1, LAPTOP, {"discriminator": "plain"}, 500_000 // 16),
        (1_000, 0.1, LAPTOP, {"discriminator": "plain"}, 300 * 1_000 // 16),
        (60, 0.1, LAPTOP, {"discriminator": "plain"}, 100_000 // 16),
        (7_180, 0.1, WITH_GPU, {"discriminator": "plain", "batch_size": 64}, 2_000_000 // 64),
        (7_180, 0.1, LAPTOP, {}, 192_000 // 16),
        (60, 0.1, LAPTOP, {}, 96_000 // 16),
        (7_180, 10.0, LAPTOP, {"discriminator": "plain"}, plan.MAX_HOURS * 360),  # a slow machine: MAX_HOURS
        (7_180, 1e9, LAPTOP, {}, 1),
        (7_180, 10.0, LAPTOP, {"refine_from": 0}, plan.MAX_HOURS * 360),  # the first batches refine already
    ],
)
def test_run_length_follows_the_photos_up_to_max_hours(photos, step_s, machine, flags, steps):
    assert plan.choose_length(photos, TrainingConfig(**flags), step_s, machine).value == steps


def test_new_run_refines_at_its_end_and_a_grown_one_from_its_start():
    assert to_dict(*plan.choose_refinement(TrainingConfig(steps=12_000), None)) == {"refine_from": 3_000}
    config = TrainingConfig(image_size=128)
    start = plan.Start(TrainingConfig(image_size=64), is_model=False)
    assert plan.choose_length(7_180, config, None, LAPTOP, start).value == 96_000 // 16
    assert to_dict(*plan.choose_refinement(config, start)) == {"refine_from": 0, "refining_learning_rate": 5e-4}
    assert to_dict(*plan.choose_refinement(config, replace(start, config=config))) == {"refine_from": 0}
    assert to_dict(*plan.choose_image_size([100], LAPTOP, start))["image_size"] == 128
    largest = plan.Start(TrainingConfig(image_size=256), is_model=False)
    assert plan.choose_image_size([100], LAPTOP, largest)[0].reason == "the 256 px of the source run"


@pytest.mark.parametrize(
    ("steps", "flags", "kid"),
    [(12_000, {}, "2.5"), (6_250, {"discriminator": "plain", **PLAIN_SETTINGS}, "79"), (996, {}, ""), (12_004, {}, "")]
    + [(12_000, flags, "") for flags in ({"image_size": 128}, {"refine_from": 0}, {"learning_rate": 1e-3})],
)
def test_kid_is_expected_of_measured_settings_and_lengths_alone(steps, flags, kid):
    assert plan.expected_kid(TrainingConfig(**{"steps": steps, "refine_from": steps // 4} | flags)) == kid


def test_run_from_a_model_keeps_its_size_for_a_fifth_of_the_images():
    start = plan.Start(TrainingConfig(image_size=128), is_model=True)
    assert to_dict(*plan.choose_image_size([100], LAPTOP, start))["image_size"] == 128
    assert to_dict(*plan.choose_networks(60, 128, WITH_GPU, start))["preset"] == "cpu"
    reason = "19,200 images, a fifth of those without --from, 320 epochs of the photos"
    assert plan.choose_length(60, TrainingConfig(), None, LAPTOP, start) == plan.Choice("steps", 1_200, reason)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.4, "a second"), (1.6, "2 seconds"), (3_000, "50 minutes"), (12_600, "3.5 hours")]
)
def test_duration_is_formatted_in_words(seconds, words):
    assert plan.format_duration(seconds) == words
