"""Assignment of clips to batches."""

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
    assert all(len(batch) <= batch_size for share in shares for batch in share)
    together = [[clip for batch in batches for clip in batch] for batches in zip(*shares, strict=True)]
    assert all(together)
    assert sorted(clip for batch in together for clip in batch) == list(range(num_clips))
    # One process with equally large batches takes the same clips in each step, in the same order.
    assert together == epoch_batches(num_clips, batch_size * processes, seed=seed, epoch=epoch)


@settings(max_examples=50, deadline=None)
@given(**SIZES, start=st.integers(0, 60))
def test_an_epoch_resumes_where_it_stopped(num_clips, batch_size, processes, start):
    """The remaining clips of the order are used, on any number of processes."""
    order = [clip for (clip,) in epoch_batches(num_clips, 1, seed=3, epoch=1)]
    shares = [
        epoch_batches(num_clips, batch_size, seed=3, epoch=1, process_index=i, num_processes=processes, start=start)
        for i in range(processes)
    ]
    left = [clip for batches in zip(*shares, strict=True) for batch in batches for clip in batch]
    assert left == order[start:]


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


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_clips_of_a_group_follow_each_other(groups, seed):
    def runs(order):
        return [group for number, group in enumerate(order) if number == 0 or order[number - 1] != group]

    batches = epoch_batches(len(groups), 4, seed=seed, epoch=0, groups=groups)
    order = [clip for batch in batches for clip in batch]
    assert sorted(order) == list(range(len(groups)))
    assert len(runs([groups[clip] for clip in order])) == len(set(groups))
    for process_batches in zip(
        *(
            epoch_batches(len(groups), 2, seed=seed, epoch=0, process_index=i, num_processes=2, groups=groups)
            for i in (0, 1)
        ),
        strict=True,
    ):
        here, there = ({groups[clip] for clip in batch} for batch in process_batches)
        assert not here & there
    in_order = [clip for batch in ordered_batches(len(groups), 4, groups=groups) for clip in batch]
    assert [groups[clip] for clip in in_order] == sorted(groups)
