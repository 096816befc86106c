"""
Registration with the Auto classes and pipelines of Transformers once both packages are imported, in either order.

Registering imports Transformers, which takes seconds. Code that uses this package without it (printing the help of the
command line, reading a table) should not wait, so an import hook registers as soon as Transformers is imported. If a
module of this package imports Transformers, its own classes are incomplete until it has been executed, so the hook
waits for the outermost such module to finish.
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

    from .configuration_cae_av import CaeAvConfig
    from .configuration_ssuformer import SsuFormerConfig
    from .modeling.modeling_cae_av import CaeAvModel
    from .modeling.ssuformer.modeling_ssuformer import SsuFormerModel
    from .pipelines import register as register_pipelines
    from .processing.feature_extraction_cae_av import CaeAvFeatureExtractor
    from .processing.processing_cae_av import CaeAvProcessor
    from .processing.video_processing_cae_av import CaeAvVideoProcessor

    for config, model in ((CaeAvConfig, CaeAvModel), (SsuFormerConfig, SsuFormerModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model)
        AutoFeatureExtractor.register(config, CaeAvFeatureExtractor)
        AutoVideoProcessor.register(config, CaeAvVideoProcessor)
        AutoProcessor.register(config, CaeAvProcessor)
    register_pipelines()


def register_with_transformers() -> None:
    """Register now if Transformers has been imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Hook())


class _Hook(threading.local, MetaPathFinder):
    """Delegates to the other finders, registers after the module they found has been executed, and removes itself."""

    # Nesting of modules of this package, and Transformers, being executed in this thread.
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
            vars(loader).pop("exec_module", None)  # restores the loader's own method
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        loader.exec_module = exec_module
