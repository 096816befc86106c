"""
A local page on which models are tried: `caeav app`, and the Spaces of `caeav push --space`.

`views` says what of a task's results is shown, one class per kind of model, named by its [`~task.Task`]. `prediction`
loads models, reads clips and runs them, with their own sound or another one; `timeline` draws results as HTML. None of
these needs Gradio, which only `page` imports: it is an extra, `pip install "caeav-hf[app]"`.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .page import build_page, launch_page
    from .prediction import Limits


__all__ = ["Limits", "build_page", "launch_page"]

__getattr__, __dir__ = lazy_names(__name__, {".page": ("build_page", "launch_page"), ".prediction": ("Limits",)})
