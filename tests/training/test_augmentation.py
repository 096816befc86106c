"""Augmentation: off by default, a function of seed, epoch and clip, and true to the labels."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.errors import CaeAvError
from caeav_hf.training.augmentation import Augmentation, AugmentedClips, blank_stripes, flip, mix
from caeav_hf.training.batches import clip_loader
from caeav_hf.training.recipe import Recipe
from tests.training.tiny_training import collate


class Clips(torch.utils.data.Dataset):
    """Twelve clips of random frames and sound, of which clip 6 replaces clip 5."""

    groups = None

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.rand(12, 3, 3, 8, 8, generator=generator)
        self.sound = torch.randn(12, 3, 1, 40, 16, generator=generator) * 10 - 30

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            return {**self[6], "replaces": 5}
        labels = (self.pixels[index, :, 0] > 0.5).to(torch.int8)
        return {"pixel_values_videos": self.pixels[index], "input_features": self.sound[index], "labels": labels}


EVERYTHING = {"flip_frames": True, "spec_augment": True, "mixup": True}


def items(epoch=0, **switches):
    clips = AugmentedClips(Clips(), Augmentation(**switches, images=("labels",)))
    clips.set_epoch(epoch)
    return [clips[index] for index in range(12)]


def differing(items, others, name):
    return [i for i in range(12) if i != 5 and not torch.equal(items[i][name], others[i][name])]


def test_what_happens_follows_from_seed_epoch_and_clip():
    first = items(**EVERYTHING)
    assert first[5]["replaces"] == 5
    assert not differing(first, items(**EVERYTHING), "input_features")
    assert not differing(first, items(**EVERYTHING), "pixel_values_videos")
    for others in (items(epoch=1, **EVERYTHING), items(seed=1, **EVERYTHING)):
        assert len(differing(first, others, "input_features")) == 11
        assert 1 < len(differing(first, others, "pixel_values_videos")) < 10


def test_a_switch_changes_its_own_part_alone():
    plain = items()
    assert not differing(plain, items(flip_frames=True), "input_features")
    flipped = differing(plain, items(flip_frames=True), "pixel_values_videos")
    assert 1 < len(flipped) < 10
    assert flipped == differing(plain, items(**EVERYTHING), "pixel_values_videos")
    assert not differing(plain, items(spec_augment=True, mixup=True), "pixel_values_videos")
    # The original item is not modified.
    source = Clips()
    before = source.sound.clone()
    AugmentedClips(source, Augmentation(**EVERYTHING, images=("labels",)))[0]
    assert torch.equal(source.sound, before)


def test_workers_that_live_on_do_the_same():
    clips = AugmentedClips(Clips(), Augmentation(**EVERYTHING, images=("labels",)))
    batches: list[list[int]] = []
    loader = clip_loader(clips, batches, collate, num_workers=2, persistent_workers=True)
    for epoch, order in enumerate(([[3, 1], [0, 7], [2]], [[1, 2, 8]])):
        batches[:] = order
        clips.set_epoch(epoch)
        expected = items(epoch, **EVERYTHING)
        found = list(loader)
        assert [batch["indices"] for batch in found] == order
        for batch in found:
            for index, sound in zip(batch["indices"], batch["inputs"]["input_features"], strict=True):
                torch.testing.assert_close(sound, expected[index]["input_features"], rtol=0, atol=1e-3)


def test_masks_are_flipped_with_their_frames():
    item = Clips()[0]
    flipped = flip(item, ["labels"])
    assert torch.equal((flipped["pixel_values_videos"][:, 0] > 0.5).to(torch.int8), flipped["labels"])
    assert not torch.equal(flipped["labels"], item["labels"])
    # Targets that are no images have no left and right.
    assert torch.equal(flip(item)["labels"], item["labels"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 1001), st.integers(3, 64))
def test_at_most_two_stripes_each_are_blanked(seed, frames, bands):
    features = torch.randn(2, 1, frames, bands) * 10 - 30
    blanked = blank_stripes(features, np.random.default_rng(seed))
    mean = features.mean((0, 1, 2))
    for before, after in zip(features[:, 0], blanked[:, 0], strict=True):
        changed = before != after
        whole_frames, whole_bands = changed.all(1), changed.all(0)
        assert torch.equal(changed, whole_frames[:, None] | whole_bands | changed & (after == mean))
        assert torch.equal(after[changed], mean.expand_as(after)[changed])
        assert whole_frames.sum() <= 2 * 63 or whole_bands.all()
        assert whole_bands.sum() <= 2 * 7 or whole_frames.all()


def test_the_own_sound_is_the_louder_one():
    clips = Clips()
    plain, mixed = items(), items(mixup=True)
    for index in (i for i in range(12) if i != 5):
        own, found = plain[index]["input_features"], mixed[index]["input_features"]
        assert (found - own).norm() <= max((clips.sound[i] - own).norm() for i in range(12)) / 2
        assert torch.equal(mixed[index]["labels"], plain[index]["labels"])
    longer, shorter = torch.ones(3, 1, 4, 2), torch.zeros(2, 1, 4, 2)
    assert mix(longer, shorter, 0.75)[:, 0, 0, 0].tolist() == [0.75, 0.75, 1.0]


def test_switches_that_would_make_labels_wrong_are_refused():
    assert not any(getattr(Recipe(), name) for name in EVERYTHING)
    Recipe(task="avs_ms3", **EVERYTHING)
    Recipe(task="avvp", flip_frames=True, spec_augment=True)
    for task, name in (("avqa", "flip_frames"), ("avqa", "mixup"), ("avvp", "mixup")):
        with pytest.raises(CaeAvError, match=f"'{name}' must be false for task {task}"):
            Recipe(task=task, **{name: True})
    for task, name, value, off in (
        ("avs_s4", "crop_area", 0.5, "null"),
        ("avs_ms3", "rand_augment", "rand-m7-n4", "null"),
        ("ra_ssu", "crop_area", 0.5, "null"),
        ("ra_ssu", "flip_frames", True, "false"),
        ("avqa", "sound_mixing", 0.5, "0"),
        ("avvp", "sound_mixing", 0.5, "0"),
    ):
        with pytest.raises(CaeAvError, match=f"'{name}' must be {off} for task {task}"):
            Recipe(task=task, **{name: value})
    with pytest.raises(CaeAvError, match="'sound_mixing' must be 0 with mixup"):
        Recipe(mixup=True, sound_mixing=0.5)
    with pytest.raises(CaeAvError, match="'crop_area' must be in"):
        Recipe(crop_area=0.0)


OF_FRAMES = {"rand_augment": "rand-m7-n4", "crop_area": 0.08, "erasing": 0.25}


@pytest.mark.parametrize("name", OF_FRAMES)
def test_frames_of_a_clip_change_alike(name):
    clip = {
        "pixel_values_videos": torch.rand(1, 3, 16, 16).expand(3, -1, -1, -1),
        "input_features": torch.ones(3, 1, 4, 2),
    }
    generators = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    changed = [Augmentation(**{name: OF_FRAMES[name]})([clip], 0, epoch)["pixel_values_videos"] for epoch in range(12)]
    again = Augmentation(**{name: OF_FRAMES[name]})([clip], 0, 3)["pixel_values_videos"]
    assert torch.equal(again, changed[3])
    for frames in changed:
        assert frames.shape == (3, 3, 16, 16)
        assert torch.equal(frames, frames[:1].expand_as(frames))
    same = [torch.allclose(frames, clip["pixel_values_videos"], atol=0.05) for frames in changed]
    assert not all(same)
    assert any(same) == (name == "erasing")
    # The generators that dropout draws from are as before.
    assert random.getstate() == generators[0]
    assert (np.random.get_state()[1] == generators[1]).all()
    assert torch.equal(torch.get_rng_state(), generators[2])


def test_each_segment_is_mixed_with_its_own_weight():
    features = {"pixel_values_videos": torch.zeros(3, 3, 4, 4)}
    clips = [{**features, "input_features": torch.full((3, 1, 4, 2), float(value))} for value in (0, 1)]
    found = [Augmentation(sound_mixing=0.5)(clips, 0, epoch)["input_features"] for epoch in range(40)]
    mixed = [sound for sound in found if sound.any()]
    assert 5 < len(mixed) < 20  # half, in half of which the other clip is the clip itself
    weights = torch.stack([sound[:, 0, 0, 0] for sound in mixed])
    assert (weights[:, 0] != weights[:, 1]).all()
    assert weights.mean() == pytest.approx(0.5, abs=0.1)
    assert weights.std() == pytest.approx(21**-0.5 / 2, abs=0.05)
    assert all((sound == sound[:, :, :1, :1]).all() for sound in mixed)


def test_a_policy_that_timm_does_not_have_is_refused():
    for policy in ("autumn", "rand-x3-n4"):
        with pytest.raises(CaeAvError, match="rand_augment"):
            Augmentation(rand_augment=policy)
