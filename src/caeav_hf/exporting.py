"""
Models as graphs for other run times: `torch.export` and ONNX, for any number of clips, frames and words.

A graph computes what the model does in evaluation mode, without losses. Padded frames go through the towers too, where
the model itself leaves them out; results are the same.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import __version__
from .configuration_cae_av import CaeAvConfig
from .errors import CaeAvError
from .modeling import CaeAvPreTrainedModel


# What the processor reads of the outputs of each model, as far as the model has it.
_AGREEMENT = ("agreement", "agreement_probs")
TASK_OUTPUTS: dict[str, tuple[str, ...]] = {
    "CaeAvModel": ("visual_hidden_state", "audio_hidden_state", *_AGREEMENT),
    "CaeAvForEventLocalization": ("event_logits", "class_logits", "frame_log_probs", *_AGREEMENT),
    "CaeAvForSegmentation": ("logits", *_AGREEMENT),
    "CaeAvForVideoParsing": (
        *("event_probs", "audio_probs", "visual_probs", "audio_frame_probs", "visual_frame_probs"),
        *_AGREEMENT,
    ),
    "CaeAvForQuestionAnswering": ("logits", "visual_attention", "audio_attention", "grounding", *_AGREEMENT),
}

# Most that a difference may be, relative to values above 1 and absolute below.
TOLERANCE = 1e-4

CaptionKind = Literal["ids", "embeds"]


def check_packages() -> None:
    """
    Raises:
        CaeAvError: A package that ONNX needs is missing.
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
    Random inputs of a model, under the names and with the types that the processor gives them. From two clips and two
    frames on, the first clip is padded; the last clip has no caption.

    Args:
        model: Its configuration says what there is, and how large.
        batch_size, num_frames: Clips and frames.
        captions: As token ids, as features of the text tower, or none.
        seed: Of the random values.
    """
    config: CaeAvConfig = model.config
    generator = torch.Generator().manual_seed(seed)
    side, audio = config.vision_config.image_size, config.audio_config
    spectrum = (audio.num_mel_bins,) * 2
    if not config.shared_tower:
        spectrum = (int(audio.tile_seconds * audio.sampling_rate) // audio.hop_length + 1, audio.num_mel_bins)
    grid = (batch_size, num_frames)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*grid, *shape, generator=generator)

    def words(length: int, size: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of texts of different lengths."""
        mask = torch.arange(length) < torch.randint(1, length + 1, (batch_size, 1), generator=generator)
        return torch.randint(1, size, (batch_size, length), generator=generator) * mask, mask.long()

    frame_mask = torch.ones(grid, dtype=torch.bool)
    frame_mask[0, max(1, num_frames - 1) :] = batch_size == 1
    inputs = {
        "pixel_values_videos": noise(3, side, side),
        "input_features": 15 * noise(1, *spectrum) - 30,
        "frame_mask": frame_mask,
    }
    inputs = {name: value * frame_mask.view(*grid, *[1] * (value.ndim - 2)) for name, value in inputs.items()}
    if config.use_case and captions is not None:
        for kind, length in (("visual", 6), ("audio", 5)):
            ids, mask = words(length, config.text_config.vocab_size)
            mask[-1] *= batch_size == 1
            width = config.text_config.hidden_size
            features = torch.randn(batch_size, length, width, generator=generator)
            inputs[f"{kind}_caption_{captions}"] = ids if captions == "ids" else features
            inputs[f"{kind}_caption_mask"] = mask
    if config.task == "avqa":
        inputs["question_ids"], inputs["question_mask"] = words(4, config.question_vocab_size)
    if config.task == "avvp" and config.visual_3d_size:
        inputs["visual_3d_features"] = noise(config.visual_3d_size)
    kinds = {name: model.dtype if value.is_floating_point() else value.dtype for name, value in inputs.items()}
    return {name: value.to(model.device, kinds[name]) for name, value in inputs.items()}


def axis_names(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """The axes of inputs whose lengths are free."""
    per_frame = ("pixel_values_videos", "input_features", "frame_mask", "visual_3d_features")
    second = dict.fromkeys(per_frame, "frames")
    second |= {name: "question_words" for name in inputs if name.startswith("question")}
    second |= {name: f"{name.split('_')[0]}_caption_tokens" for name in inputs if "_caption_" in name}
    return {name: {0: "batch", 1: second[name]} for name in inputs}


class NamedOutputs(nn.Module):
    """
    A model from named tensors to named tensors. What the model has one of a stage is stacked, stages first.

    Args:
        model: The model.
        names: The outputs to return, fields of the model's output.
    """

    def __init__(self, model: CaeAvPreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(
        self,
        pixel_values_videos: Tensor,
        input_features: Tensor,
        frame_mask: Tensor,
        visual_caption_ids: Tensor | None = None,
        visual_caption_embeds: Tensor | None = None,
        visual_caption_mask: Tensor | None = None,
        audio_caption_ids: Tensor | None = None,
        audio_caption_embeds: Tensor | None = None,
        audio_caption_mask: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        visual_3d_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        inputs = {
            "pixel_values_videos": pixel_values_videos,
            "input_features": input_features,
            "frame_mask": frame_mask,
            "visual_caption_ids": visual_caption_ids,
            "visual_caption_embeds": visual_caption_embeds,
            "visual_caption_mask": visual_caption_mask,
            "audio_caption_ids": audio_caption_ids,
            "audio_caption_embeds": audio_caption_embeds,
            "audio_caption_mask": audio_caption_mask,
            "question_ids": question_ids,
            "question_mask": question_mask,
            "visual_3d_features": visual_3d_features,
        }
        outputs = self.model(**{name: value for name, value in inputs.items() if value is not None})
        values = {name: outputs[name] for name in self.names}
        return {name: torch.stack(v) if isinstance(v, tuple) else v for name, v in values.items()}


def export_program(
    model: CaeAvPreTrainedModel, captions: CaptionKind | None = "ids", outputs: Sequence[str] | None = None
) -> torch.export.ExportedProgram:
    """
    Trace a model with `torch.export`; the program takes the tensors of [`example_inputs`] by name and returns a dict.

    The numbers of clips, frames, caption tokens and question words are free, from 1 on. Every input is needed: a clip
    without captions has ids and masks of zeros.

    Args:
        model: A model of a task, or [`CaeAvModel`]; it is traced in evaluation mode and stays as it is.
        captions: Whether the program reads caption ids, features of the text tower, which it then leaves out, or none.
        outputs: Names of the outputs, fields of the model's output; by default those of `TASK_OUTPUTS` that the model
            has.

    Raises:
        CaeAvError: The model has no output of such a name.
    """
    inputs = example_inputs(model, captions=captions)
    # The model may be under a class of the user's.
    known = next((TASK_OUTPUTS[base.__name__] for base in type(model).__mro__ if base.__name__ in TASK_OUTPUTS), ())
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = model(**inputs)
            there = [name for name, value in found.items() if isinstance(value, Tensor | tuple)]
            names = [name for name in known if name in there] if outputs is None else list(outputs)
            if unknown := [name for name in names if name not in there] or not names:
                raise CaeAvError(f"`outputs` names {unknown}; the model has {', '.join(there)}")
            model.cae_av.keep_constants(model.dtype)
            most = {name: model.config.text_config.context_length for name in inputs if name.endswith("caption_ids")}
            sizes = {
                name: torch.export.Dim(name, min=1, max=most.get(name.replace("_tokens", "_ids")))
                for axes in axis_names(inputs).values()
                for name in axes.values()
            }
            shapes = {
                name: {axis: sizes[length] for axis, length in axes.items()}
                for name, axes in axis_names(inputs).items()
            }
            graph = NamedOutputs(model, names).eval()
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
    Write a model as ONNX, of the opset that the installed exporter writes by default. Weights of more than two
    gigabytes lie beside the file, in `FILE.data`.

    Args:
        model: See [`export_program`], as for `captions` and `outputs`.
        file: Where to write it; its folder is made.

    Returns:
        What inputs the file takes and what it gives, as its metadata hold it under `caeav_hf`, in JSON: `model`,
        `task`, `version`, `opset`, `inputs` with `dtype` and `shape` each (free lengths by name), `outputs`.

    Raises:
        CaeAvError: A package is missing, the file cannot be written, or as [`export_program`].
    """
    check_packages()
    program = export_program(model, captions, outputs)
    inputs = example_inputs(model, captions=captions)
    names = list(program.call_spec.out_spec.unflatten(range(program.call_spec.out_spec.num_leaves)))
    from onnxscript.optimizer import fold_constants, inline, remove_unused_nodes

    # Constant folding warns of every node that it leaves as it is.
    optimizer = logging.getLogger("onnxscript.optimizer")
    level = optimizer.level
    optimizer.setLevel(logging.ERROR)
    try:
        # `optimize=True` also matches patterns at a cost that is quadratic in the number of nodes, more than all the
        # rest; run times have fusions of their own.
        written = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False, optimize=False)
        if written is not None:
            inline(written.model)
            fold_constants(written.model)
            remove_unused_nodes(written.model)
    finally:
        optimizer.setLevel(level)
    if written is None:
        raise CaeAvError(f"{file}: the exporter gave no model")
    axes = axis_names(inputs)
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
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        written.save(str(file))
    except OSError as error:
        raise CaeAvError(f"{file}: cannot be written: {error}") from error
    return description


def onnx_difference(
    model: CaeAvPreTrainedModel, file: str | Path, captions: CaptionKind | None = "ids", seed: int = 1
) -> float:
    """
    Return the largest difference, |a - b| / (1 + |b|), between the outputs a of an ONNX file in onnxruntime and b of
    its model, on random clips: three with padded frames and one without a caption, and one alone.

    Args:
        model: The model that was exported.
        file: What [`export_onnx`] wrote of it.
        captions: As there.
        seed: Of the random clips.

    Raises:
        CaeAvError: onnxruntime is missing.
    """
    if find_spec("onnxruntime") is None:
        raise CaeAvError('to run ONNX files needs onnxruntime: pip install "caeav-hf[export]"')
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
            found = session.run(names, {name: value.cpu().numpy() for name, value in inputs.items()})
            for name, values in zip(names, found, strict=True):
                b = expected[name].cpu().double()
                difference = (torch.from_numpy(values).double() - b).abs() / (1 + b.abs())
                # A value that is none is larger than all.
                largest = max(largest, float(difference.nan_to_num(torch.inf).max()))
    finally:
        model.train(was_training)
    return largest
