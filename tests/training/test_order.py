"""Which clips make up which batch."""

from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.training.order import epoch_batches, ordered_batches


SIZES = {"num_clips": st.integers(1, 60), "batch_size": st.integers(1, 7), "processes": st.integers(1, 5)}


@settings(max_examples=100, deadline=None)
@given(**SIZES, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_training_batches(num_clips, batch_size, processes, seed, epoch):
    shares = [
        epoch_batches(num_clips, batch_size, seed=seed, epoch=epoch, process_index=i, num_processes=processes)
        for i in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(1 <= len(batch) <= batch_size for share in shares for batch in share)
    seen = [clip for share in shares for batch in share for clip in batch]
    assert set(seen) == set(range(num_clips))
    assert len(seen) - num_clips < processes


@settings(max_examples=100, deadline=None)
@given(**SIZES)
def test_evaluation_batches_hold_every_clip_once(num_clips, batch_size, processes):
    shares = [
        ordered_batches(num_clips, batch_size, process_index=i, num_processes=processes) for i in range(processes)
    ]
    seen = [clip for share in shares for batch in share for clip in batch]
    assert sorted(seen) == list(range(num_clips))


def test_the_order_follows_from_seed_and_epoch_alone():
    assert epoch_batches(20, 3, seed=1, epoch=2) == epoch_batches(20, 3, seed=1, epoch=2)
    assert epoch_batches(20, 3, seed=1, epoch=2) != epoch_batches(20, 3, seed=1, epoch=3)
    assert epoch_batches(20, 3, seed=1, epoch=2) != epoch_batches(20, 3, seed=2, epoch=2)
