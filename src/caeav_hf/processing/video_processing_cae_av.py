"""Video processor, which resizes, rescales and normalises the frames of clips and batches them with a mask."""

from typing import Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
)
from transformers.video_processing_utils import BaseVideoProcessor

from ..errors import CaeAvError


class CaeAvVideoProcessor(BaseVideoProcessor):
    r"""
    Resizes the frames of clips to a square (bicubic, antialiased, the aspect ratio is not kept), scales them to [0, 1]
    and normalises them with ImageNet's mean and standard deviation. With `size={"shortest_edge": ...}` and
    `do_center_crop` it keeps the aspect ratio and crops the middle.

    `processor(videos)` takes one clip (T, H, W, 3) or (T, 3, H, W), uint8, as array or tensor, or a list of them.
    Clips of a batch may differ in T, H and W. It returns `pixel_values_videos` (B, T, 3, size, size) float32 and
    `frame_mask` (B, T) bool, True where a frame is real; T is that of the longest clip, padded frames are zero.

    All frames are processed; [`~media.clip.load_clip`] selects them.

    Raises:
        CaeAvError: A clip is empty or a file, has another shape, or holds floats although it is to be rescaled.
    """

    resample = PILImageResampling.BICUBIC
    size = {"height": 192, "width": 192}  # noqa: RUF012 (the base class's own form, as below)
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_sample_frames = False
    model_input_names = ["pixel_values_videos", "frame_mask"]  # noqa: RUF012

    def _prepare_input_videos(
        self,
        videos: list[Any],
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
    ) -> list[torch.Tensor]:
        """
        Return clips as (T, 3, H, W) views. The base class copies every full-sized frame to channels-first memory;
        resizing reads channels-last memory just as well, so frames that will be resized are not copied here.
        """
        prepared = []
        target: Any = self.size  # the base class makes it a `SizeDict`
        for index, video in enumerate(videos):
            video = torch.as_tensor(video)
            if video.ndim != 4 or not video.numel() or 3 not in (video.shape[1], video.shape[3]):
                raise CaeAvError(
                    f"clip {index} has shape {tuple(video.shape)}; expected frames of shape (T, H, W, 3) or "
                    "(T, 3, H, W), with at least one frame"
                )
            layout = input_data_format or infer_channel_dimension_format(video, num_channels=3)
            if ChannelDimension(layout) == ChannelDimension.LAST:
                video = video.permute(0, 3, 1, 2)
                if video.shape[2:] == (target.height, target.width):
                    # Without resizing, copy to channels-first as bytes rather than later as floats.
                    video = video.contiguous()
            prepared.append(video if device is None else video.to(device))
        return prepared

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        raise CaeAvError(
            f"{video_url_or_urls!r} are no frames; expected arrays (T, H, W, 3): decode files with `load_clip` or "
            "`CaeAvProcessor`"
        )

    def _preprocess(
        self, videos: list[torch.Tensor], do_rescale: bool, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        for index, video in enumerate(videos):
            if do_rescale and video.dtype != torch.uint8:
                raise CaeAvError(f"clip {index} holds {video.dtype}; expected uint8 values from 0 to 255")
        # Process clips before padding, since clips of different lengths cannot be stacked.
        clips = super()._preprocess(videos, do_rescale=do_rescale, return_tensors=None, **kwargs)
        clips = clips["pixel_values_videos"]
        lengths = torch.tensor([len(clip) for clip in clips])
        frame_mask = torch.arange(int(lengths.max())) < lengths[:, None]
        if len(clips) == 1:
            pixels = clips[0][None].contiguous()
        else:
            pixels = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        return BatchFeature({"pixel_values_videos": pixels, "frame_mask": frame_mask}, tensor_type=return_tensors)
