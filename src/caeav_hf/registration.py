"""
The Auto classes and pipelines of Transformers learn about this package when both have been imported, in either order.

Registering needs Transformers, which takes seconds to load. Who imports this package without it (the command line that
prints its help, a process that reads a table) should not wait for it, so an import hook registers once Transformers is
there. A module of this package may be what imports Transformers: its own classes are only complete when it has been
executed, so the hook waits for the outermost of them to end.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


_PACKAGE = __name__.partition(".")[0]


def register() -> None:
    """Register configurations, models, processors and pipelines with Transformers."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoVideoProcessor

    from .configuration_cae_av import CaeAvAudioConfig, CaeAvConfig, CaeAvTextConfig, CaeAvVisionConfig
    from .modeling.modeling_cae_av import CaeAvModel
    from .pipelines import register as register_pipelines
    from .processing.feature_extraction_cae_av import CaeAvFeatureExtractor
    from .processing.processing_cae_av import CaeAvProcessor
    from .processing.video_processing_cae_av import CaeAvVideoProcessor

    for config_class in (CaeAvVisionConfig, CaeAvAudioConfig, CaeAvTextConfig, CaeAvConfig):
        AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(CaeAvConfig, CaeAvModel)
    AutoFeatureExtractor.register(CaeAvConfig, CaeAvFeatureExtractor)
    AutoVideoProcessor.register(CaeAvConfig, CaeAvVideoProcessor)
    AutoProcessor.register(CaeAvConfig, CaeAvProcessor)
    register_pipelines()


def register_with_transformers() -> None:
    """Register now if Transformers has been imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Hook())


class _Hook(threading.local, MetaPathFinder):
    """Finds what the finders behind it find, and sees when it has been executed. Registers once, then it is gone."""

    # Modules of this package, and Transformers, that are being executed in this thread.
    depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" and not fullname.startswith(f"{_PACKAGE}."):
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # which uncovers the loader's own
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        loader.exec_module = exec_module
