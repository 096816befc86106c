"""Small models without zero-initialized parameters, and batches for them."""

import torch
from torch import Tensor, nn

from caeav_hf import (
    CaeAvConfig,
    CaeAvForEventLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
)
from caeav_hf.modeling import CaeAvPreTrainedModel
from caeav_hf.modeling.interaction import BlockPosition, PairPosition
from caeav_hf.task import get_task


def toy_model(seed: int = 0, attn_implementation: str = "sdpa", **overrides) -> CaeAvForEventLocalization:
    """Build a toy model in evaluation mode whose gates and residual scales, initially zero, are all active."""
    torch.manual_seed(seed)
    config = CaeAvConfig.from_preset(overrides.pop("task", "ave"), size="toy", **overrides)
    model = CaeAvForEventLocalization._from_config(config, attn_implementation=attn_implementation)
    return randomise(model).eval()


def randomise(model: CaeAvPreTrainedModel) -> CaeAvPreTrainedModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (parameter.ndim < 2 or "up.weight" in name):
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "tower" not in name and name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


def toy_segmentation_model(seed: int = 0, **overrides) -> CaeAvForSegmentation:
    """Build a `toy_model` with the segmentation decoder."""
    torch.manual_seed(seed)
    config = CaeAvConfig.from_preset(overrides.pop("task", "avs_ms3"), size="toy", **overrides)
    return randomise(CaeAvForSegmentation(config)).eval()


def toy_parsing_model(seed: int = 0, **overrides) -> CaeAvForVideoParsing:
    """Build a `toy_model` with the class-token grouping head and seven classes."""
    torch.manual_seed(seed)
    config = CaeAvConfig.from_preset("avvp", size="toy", **{"num_labels": 7, **overrides})
    return randomise(CaeAvForVideoParsing(config)).eval()


def toy_answering_model(seed: int = 0, **overrides) -> CaeAvForQuestionAnswering:
    """Build a `toy_model` with the question-answering head, five answers and twenty words."""
    torch.manual_seed(seed)
    values = {"num_labels": 5, "question_vocab_size": 20, **overrides}
    return randomise(CaeAvForQuestionAnswering(CaeAvConfig.from_preset("avqa", size="toy", **values))).eval()


def toy_batch(config: CaeAvConfig, batch_size: int = 2, num_frames: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs of the right shapes, captions with padding, labels with background."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(3, length + 1, (batch_size, 1), generator=generator)
        mask = torch.arange(length) < lengths
        tokens = torch.randint(1, config.text_config.vocab_size - 2, (batch_size, length), generator=generator)
        return tokens * mask, mask.long()

    visual_ids, visual_mask = ids(9)
    audio_ids, audio_mask = ids(7)
    shape = (batch_size, num_frames)
    return {
        "pixel_values_videos": torch.randn(*shape, 3, *config.vision_config.input_size, generator=generator),
        "input_features": 15 * torch.randn(*shape, 1, *config.audio_config.spectrogram_size, generator=generator) - 30,
        "visual_caption_ids": visual_ids,
        "visual_caption_mask": visual_mask,
        "audio_caption_ids": audio_ids,
        "audio_caption_mask": audio_mask,
        "labels": torch.randint(0, config.num_labels + 1, shape, generator=generator),
    }


def task_batch(config: CaeAvConfig, batch_size: int = 2, num_frames: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Return a `toy_batch` with the labels and inputs of the configuration's task."""
    batch = toy_batch(config, batch_size, num_frames, seed)
    generator = torch.Generator().manual_seed(seed)
    if config.task in ("avs_s4", "avs_ms3"):
        shape = (batch_size, num_frames, config.mask_size, config.mask_size)
        batch["labels"] = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    elif config.task == "avvp":
        batch["labels"] = torch.randint(0, 2, (batch_size, config.num_labels), generator=generator).float()
        if config.visual_3d_size:
            size = (batch_size, num_frames, config.visual_3d_size)
            batch["visual_3d_features"] = torch.randn(size, generator=generator)
    elif config.task == "avqa":
        mask = torch.arange(6) < torch.randint(2, 7, (batch_size, 1), generator=generator)
        ids = torch.randint(1, config.question_vocab_size, (batch_size, 6), generator=generator)
        labels = torch.randint(0, config.num_labels, (batch_size,), generator=generator)
        batch.update(question_ids=ids * mask, question_mask=mask.long(), labels=labels)
    return batch


def assert_task_trains(method: str, task: str) -> int:
    """Check that a training step of a method's toy preset reaches every kind of tensor of its layers; count these."""
    torch.manual_seed(0)
    small = {"avvp": {"num_labels": 7}, "avqa": {"num_labels": 5, "question_vocab_size": 20}}.get(task, {})
    config = CaeAvConfig.from_preset(task, size="toy", method=method, **small)
    model = randomise(get_task(task).model_class(config)).train()
    outputs = model(**task_batch(config, num_frames=3))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    trained: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("model.interactions"):
            kind = name.split(".", 4)[4]  # of any pair: rectifiers may be shut in one of these small adapters
            assert parameter.grad is not None, name
            trained[kind] = trained.get(kind, False) or bool(parameter.grad.any())
    assert all(trained.values()), trained
    return len(trained)


def as_double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to double precision."""
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def pair_position(
    visual: tuple[int, int], audio: tuple[int, int], stage: int = 1, is_first: bool = True
) -> PairPosition:
    """Return the position of a layer between streams of these tokens and channels."""
    blocks = [
        BlockPosition(0, 0, depth=4, num_tokens=tokens, hidden_size=size, grid=(1, tokens), num_heads=1)
        for tokens, size in (visual, audio)
    ]
    return PairPosition(stage, is_first, False, *blocks)


def block(tokens: Tensor) -> BlockPosition:
    """Return the position of a block on these tokens, in a square grid if possible."""
    side = round(tokens.shape[1] ** 0.5)
    grid = (side, side) if side**2 == tokens.shape[1] else (1, tokens.shape[1])
    return BlockPosition(
        0, 0, depth=1, num_tokens=tokens.shape[1], hidden_size=tokens.shape[2], grid=grid, num_heads=1
    )


def opened(module: nn.Module) -> nn.Module:
    """Return the module in float64 and evaluation mode, with no parameter at zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        tensor.data = (drawn.abs() + 0.5 if name.endswith("var") else 0.5 * drawn).double()
    return module.double().eval()
