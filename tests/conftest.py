"""Shared by all tests."""

import atexit
import gc
import re
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from caeav_hf.modeling.pretrained import TowerPreTrainedModel
from tests.odd_offsets import at_odd_offsets


pytest_plugins = ["tests.corpora"]

# The tests' tensors are too small to share: more threads would only wait for each other.
torch.set_num_threads(1)

# Loading a model compiles a pattern for each of its weights, far more than `re` remembers by itself.
re._MAXCACHE = 2**16

# The libraries make half a million objects that stay. Looking through them for garbage, again and again, takes a fifth
# of the time of the tests.
gc.disable()


# Files that take a minute or more, the longest first. Begun last, one of them would run on alone at the end.
_LONG_FILES = ("test_distributed.py", "test_exporting.py", "test_docs.py", "test_streamed_run.py", "test_run.py")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist, which would begin with the files of most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG_FILES.index(item.path.name) if item.path.name in _LONG_FILES else 99)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()
    atexit.register(gc.unfreeze)  # libraries report what is left at the end


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Reset Accelerate, which keeps the precision of the first accelerator for the whole process."""
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="session", autouse=True)
def _loaded_at_odd_offsets() -> Iterator[None]:
    """Load weights at odd offsets, so that outputs of two loads differ by rounding on all machines."""
    with pytest.MonkeyPatch.context() as patch:
        for base in (PreTrainedModel, TowerPreTrainedModel):
            patch.setattr(base, "from_pretrained", classmethod(_at_odd_offsets(base)))
        yield


def _at_odd_offsets(base):
    from_pretrained = base.from_pretrained.__func__

    def loading(cls, *args, **kwargs):
        loaded = from_pretrained(cls, *args, **kwargs)
        # Once per load, at its end: each next load is two elements further, and so rounds differently.
        if base is TowerPreTrainedModel or not issubclass(cls, TowerPreTrainedModel):
            at_odd_offsets(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    return loading
