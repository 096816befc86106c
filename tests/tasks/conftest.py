"""Metrics accumulated over several processes."""

import multiprocessing

import pytest
import torch


def _score_part(metric_class, parts, process_id, cache_dir, queue):
    torch.set_num_threads(1)
    metric = metric_class(num_process=2, process_id=process_id, experiment_id="parts", cache_dir=cache_dir, timeout=60)
    for part in parts[process_id::2]:
        metric.add_batch(**part)
    queue.put((process_id, metric.compute()))


@pytest.fixture
def over_two_processes(tmp_path):
    """Run two processes that share the batches `parts`, and return the results of each by number."""

    def compute(metric_class, parts):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        arguments = (metric_class, parts)
        workers = [
            context.Process(target=_score_part, args=(*arguments, number, str(tmp_path), queue)) for number in range(2)
        ]
        for worker in workers:
            worker.start()
        results = dict(queue.get(timeout=60) for _ in workers)
        for worker in workers:
            worker.join()
        return results

    return compute
