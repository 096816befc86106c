"""
Export of models as graphs, with `torch.export` and ONNX, for any number of clips, frames and words.

A graph computes the model's outputs in evaluation mode, without losses. Unlike the model itself it also sends padded
frames through the towers; results are the same.
"""

import inspect
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from . import __version__
from .configuration_cae_av import CaeAvConfig
from .errors import CaeAvError
from .files import make_folder, writing
from .modeling.modeling_cae_av import CaeAvPreTrainedModel, random_words
from .task import FRAMES, Target, get_task


# Largest accepted difference, as `onnx_difference` measures it.
TOLERANCE = 1e-4

CaptionKind = Literal["ids", "embeds"]


def check_packages() -> None:
    """
    Check that the packages for ONNX are installed.

    Raises:
        CaeAvError: A package is missing.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise CaeAvError(f'ONNX needs {" and ".join(missing)}: pip install "caeav-hf[export]"')


def example_inputs(
    model: CaeAvPreTrainedModel,
    batch_size: int = 2,
    num_frames: int = 3,
    captions: CaptionKind | None = "ids",
    seed: int = 0,
) -> dict[str, Tensor]:
    """
    Draw random inputs of a model, with the names and types of the processor's output. With at least two clips and two
    frames, the first clip has a padded frame and the last clip has no caption.

    Args:
        model: The model; its configuration decides which inputs there are, and their sizes.
        batch_size, num_frames: Number of clips and of frames per clip.
        captions: Captions as token ids, as features of the text tower, or none; none if no output of a graph depends
            on them.
        seed: Random seed.
    """
    config: CaeAvConfig = model.config
    generator = torch.Generator().manual_seed(seed)
    grid = (batch_size, num_frames)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*grid, *shape, generator=generator)

    frame_mask = torch.ones(grid, dtype=torch.bool)
    frame_mask[0, max(1, num_frames - 1) :] = batch_size == 1
    inputs = {
        "pixel_values_videos": noise(3, *config.input_size),
        "input_features": 15 * noise(1, *config.audio_config.spectrogram_size) - 30,
        "frame_mask": frame_mask,
    }
    inputs = {name: value * frame_mask.view(*grid, *[1] * (value.ndim - 2)) for name, value in inputs.items()}
    if config.reads_captions and model.exports_captions and captions is not None:
        for kind, length in (("visual", 6), ("audio", 5)):
            ids, mask = random_words(batch_size, length, config.text_config.vocab_size, generator)
            mask[-1] *= batch_size == 1
            width = config.text_config.hidden_size
            features = torch.randn(batch_size, length, width, generator=generator)
            inputs[f"{kind}_caption_{captions}"] = ids if captions == "ids" else features
            inputs[f"{kind}_caption_mask"] = mask
    inputs |= model.example_inputs(batch_size, num_frames, generator)
    kinds = {name: model.dtype if value.is_floating_point() else value.dtype for name, value in inputs.items()}
    return {name: value.to(model.device, kinds[name]) for name, value in inputs.items()}


def axis_names(inputs: Mapping[str, Tensor], targets: Mapping[str, Target]) -> dict[str, dict[int, str]]:
    """Name the dynamic axes of each input of a task with these targets."""
    second = dict.fromkeys(("pixel_values_videos", "input_features", "frame_mask"), FRAMES)
    second |= {name: f"{name.split('_')[0]}_caption_tokens" for name in inputs if "_caption_" in name}
    second |= {name: target.axis for name, target in targets.items() if target.axis is not None}
    return {name: {0: "batch"} | ({1: second[name]} if name in second else {}) for name in inputs}


class NamedOutputs(nn.Module):
    """
    A model that takes tensors by name and returns a dict of tensors. Outputs with one tensor per stage are stacked
    along a new first dimension.

    Args:
        model: The model.
        names: Outputs to return, fields of the model's output or names in its `explained`.
    """

    def __init__(self, model: CaeAvPreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.model(**inputs)
        found = {**outputs, **(outputs.get("explained") or {})}
        values = {name: found[name] for name in self.names}
        return {name: torch.stack(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _with_arguments(function: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """Name the arguments of a function of any keyword arguments, since the checks of a program refer to them."""

    def named(**arguments: Any) -> Any:
        return function(**arguments)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    cast(Any, named).__signature__ = inspect.Signature(parameters)
    return named


def export_program(
    model: CaeAvPreTrainedModel, captions: CaptionKind | None = "ids", outputs: Sequence[str] | None = None
) -> torch.export.ExportedProgram:
    """
    Trace a model with `torch.export`; the program takes the tensors of [`example_inputs`] by name and returns a dict.

    The numbers of clips, frames, caption tokens and question words are dynamic, from 1 up. Every input is required: a
    clip without captions has ids and masks of zeros.

    Args:
        model: A model of a task, or [`CaeAvModel`]; it is traced in evaluation mode and not changed.
        captions: Whether the program reads caption ids, features of the text tower (which it then omits), or none.
        outputs: Names of the outputs, as in [`NamedOutputs`]; by default those of the model's `exported_outputs`
            that it gives.

    Raises:
        CaeAvError: The model lacks an output.
    """
    inputs = example_inputs(model, captions=captions)
    axes_of_inputs = axis_names(inputs, get_task(model.config.task).targets)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            returned = model(**inputs)
            everything = {**returned, **(returned.get("explained") or {})}
            available = [
                name
                for name, value in everything.items()
                if isinstance(value, Tensor | tuple) and name not in model.decoded_outputs
            ]
            defaults = [name for name in model.exported_outputs if name in available]
            names = defaults if outputs is None else list(outputs)
            if unknown := [name for name in names if name not in available]:
                raise CaeAvError(f"`outputs` has unknown names {unknown}; the model has {', '.join(available)}")
            if not names and model.decoded_outputs and outputs is None:
                raise CaeAvError(
                    f"the model cannot be exported as a graph: it has no {' or '.join(model.exported_outputs)}, and a "
                    f"graph does not decode {model.decoded_outputs[0]}; `outputs` may name {', '.join(available)}"
                )
            if not names:
                raise CaeAvError(f"`outputs` must name some of the model's outputs: {', '.join(available)}")
            model.base_model.keep_constants(model.dtype)
            limit = {name: model.config.text_config.context_length for name in inputs if name.endswith("caption_ids")}
            sizes = {
                name: torch.export.Dim(name, min=1, max=limit.get(name.replace("_tokens", "_ids")))
                for axes in axes_of_inputs.values()
                for name in axes.values()
            }
            shapes = {
                name: {axis: sizes[length] for axis, length in axes.items()} for name, axes in axes_of_inputs.items()
            }
            graph = NamedOutputs(model, names).eval()
            graph.forward = _with_arguments(graph.forward, inputs)  # type: ignore[method-assign]
            return torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    finally:
        model.train(was_training)


def export_onnx(
    model: CaeAvPreTrainedModel,
    file: str | Path,
    captions: CaptionKind | None = "ids",
    outputs: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    Write a model as ONNX, with the default opset of the installed exporter. Weights of more than two gigabytes are
    stored beside the file, in `FILE.data`.

    Args:
        model, captions, outputs: As for [`export_program`].
        file: File to write; its folder is created if needed.

    Returns:
        Description of the file, also stored as JSON in its metadata under `caeav_hf`: `model`, `task`, `version`,
        `opset`, `inputs` with `dtype` and `shape` (dynamic lengths by name), `outputs`.

    Raises:
        CaeAvError: A package is missing, the file cannot be written, or an error of [`export_program`].
    """
    check_packages()
    program = export_program(model, captions, outputs)
    inputs = example_inputs(model, captions=captions)
    names = list(program.call_spec.out_spec.unflatten(range(program.call_spec.out_spec.num_leaves)))
    from onnxscript.optimizer import fold_constants, inline, remove_unused_nodes

    # Constant folding warns about every node that it cannot fold.
    optimizer = logging.getLogger("onnxscript.optimizer")
    level = optimizer.level
    optimizer.setLevel(logging.ERROR)
    try:
        # `optimize=True` also matches patterns, which is quadratic in the number of nodes and slower than everything
        # else; runtimes fuse operators themselves.
        written = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False, optimize=False)
        if written is not None:
            inline(written.model)
            fold_constants(written.model)
            remove_unused_nodes(written.model)
    finally:
        optimizer.setLevel(level)
    if written is None:
        raise CaeAvError(f"{file}: the exporter returned no model")
    axes = axis_names(inputs, get_task(model.config.task).targets)
    description = {
        "model": type(model).__name__,
        "task": model.config.task,
        "version": __version__,
        "opset": written.model.opset_imports[""],
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [axes[name].get(axis, length) for axis, length in enumerate(value.shape)],
            }
            for name, value in inputs.items()
        },
        "outputs": names,
    }
    written.model.metadata_props["caeav_hf"] = json.dumps(description)
    _save(written, Path(file))
    return description


def _save(written: Any, file: Path) -> None:
    """Save a graph; one that is too large for a file has its tensors in another one, which it names."""
    make_folder(file.parent)
    partial = file.with_name(f".{file.name}.part")
    with writing(file):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        try:
            partial.mkdir()
            written.save(str(partial / file.name))
            # The graph comes last.
            for path in sorted(partial.iterdir(), key=lambda path: path.name == file.name):
                path.replace(file.with_name(path.name))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def onnx_difference(
    model: CaeAvPreTrainedModel, file: str | Path, captions: CaptionKind | None = "ids", seed: int = 1
) -> float:
    """
    Return the largest difference, |a - b| / (1 + |b|), between the outputs a of an ONNX file in onnxruntime and b of
    its model, on random inputs: a batch of three clips with padding and a missing caption, and a single frame.

    Args:
        model: The exported model.
        file: The file that [`export_onnx`] wrote.
        captions: As for the export.
        seed: Random seed of the inputs.

    Raises:
        CaeAvError: onnxruntime is missing.
    """
    if find_spec("onnxruntime") is None:
        raise CaeAvError('running ONNX files needs onnxruntime: pip install "caeav-hf[export]"')
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    was_training = model.training
    reference = NamedOutputs(model, names).eval()
    largest = 0.0
    try:
        for batch_size, num_frames in ((3, model.config.num_frames), (1, 1)):
            inputs = example_inputs(model, batch_size, num_frames, captions, seed)
            with torch.no_grad():
                expected = reference(**inputs)
            results = session.run(names, {name: value.cpu().numpy() for name, value in inputs.items()})
            for name, values in zip(names, results, strict=True):
                b = expected[name].cpu().double()
                difference = (torch.from_numpy(values).double() - b).abs() / (1 + b.abs())
                # NaN counts as an infinite difference.
                largest = max(largest, float(difference.nan_to_num(torch.inf).max()))
    finally:
        model.train(was_training)
    return largest
