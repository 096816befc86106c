"""Processor of CAE-AV: converts clips and captions to the model's inputs, and its outputs to labelled intervals."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import LARGE_INTEGER
from transformers.utils import cached_file

from ..constants import IGNORED_LABEL
from ..errors import CaeAvError, reading, shown
from ..media.clip import Clip, MissingAudio, check_missing_audio, load_clip
from ..media.containers import MediaSource, source_name
from ..media.inputs import (
    as_frames,
    as_waveform,
    clip_of_decoder,
    decoder_name,
    is_audio_decoder,
    is_frames,
    is_video_decoder,
    sound_name,
    undecoded,
)
from ..media.segments import FRAME_SAMPLINGS, FrameSampling, count_segments, is_spread
from ..media.sound import load_audio, spread_sound
from ..remote_code import AUTO_MAP, write_stub
from ..task import get_task
from .feature_extraction_cae_av import CaeAvFeatureExtractor
from .question_tokenization import question_tokenizer_from_words
from .tokenization import bounded_text, build_clip_tokenizer, clean_caption, load_sound_tokenizer, load_text_tokenizer
from .video_processing_cae_av import CaeAvVideoProcessor


# Subfolder of a saved processor for the optional tokenizer of questions.
_QUESTION_TOKENIZER = "question_tokenizer"
# Likewise for the optional tokenizer of descriptions of sounds.
_SOUND_TOKENIZER = "sound_tokenizer"
# Most segments of a clip, pixels of a frame's side, and tokens of a text.
_MOST_FRAMES = 100_000
_MOST_PIXELS = 8192
_MOST_TOKENS = 100_000
# Maximum number of words that an error lists.
_SHOWN_WORDS = 40


class CaeAvProcessor(ProcessorMixin):
    r"""
    Bundles the feature extractor, the video processor and the tokenizers of CAE-AV.

    Args:
        feature_extractor ([`CaeAvFeatureExtractor`]): Converts sound to `input_features`.
        video_processor ([`CaeAvVideoProcessor`]): Converts frames to `pixel_values_videos`.
        tokenizer ([`~transformers.CLIPTokenizer`]): Tokenizer of the captions.
        question_tokenizer ([`~transformers.PreTrainedTokenizerFast`], *optional*): Tokenizer of the questions, only
            for question answering (see [`~processing.build_question_tokenizer`]).
        num_frames (`int`, defaults to 10): Maximum number of segments read from a file.
        id2label (`dict[int, str]`, *optional*): Names of the classes.
        mask_size (`int`, *optional*): Side in pixels of the square masks on which a segmentation model is trained.
        frame_sampling (`str`, defaults to `"consecutive"`): Which segments are read from a file: the first
            `num_frames` (`"consecutive"`), or `num_frames` evenly from the whole file (`"spread"`), with sound that
            reaches from end to end (`"spread_to_ends"`).
        sound_tokenizer ([`~transformers.RobertaTokenizer`], *optional*): Tokenizer of descriptions of sounds, CLAP's,
            only for few-shot models.

    ```python
    >>> processor = CaeAvProcessor.from_config(model.config)
    >>> inputs = processor("dog.mp4", visual_captions="a dog", audio_captions="a dog barks")
    >>> events = processor.post_process_event_localization(model(**inputs))
    ```
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        video_processor: Any = None,
        tokenizer: Any = None,
        question_tokenizer: Any = None,
        num_frames: int = 10,
        id2label: Mapping[int, str] | None = None,
        mask_size: int | None = None,
        frame_sampling: FrameSampling = "consecutive",
        sound_tokenizer: Any = None,
    ):
        if not 1 <= num_frames <= _MOST_FRAMES:
            raise CaeAvError(f"`num_frames` must be at least 1 and at most {_MOST_FRAMES:,}, got {shown(num_frames)}")
        self.num_frames = num_frames
        # Keys of JSON objects are strings.
        self.id2label = None if id2label is None else {int(index): name for index, name in id2label.items()}
        self.mask_size = mask_size
        if frame_sampling not in FRAME_SAMPLINGS:
            raise CaeAvError(
                f"`frame_sampling` must be one of {', '.join(map(repr, FRAME_SAMPLINGS))}, got {frame_sampling!r}"
            )
        self.frame_sampling: FrameSampling = frame_sampling
        for name, optional in ((_QUESTION_TOKENIZER, question_tokenizer), (_SOUND_TOKENIZER, sound_tokenizer)):
            if optional is not None and not isinstance(optional, PreTrainedTokenizerBase):
                raise TypeError(
                    f"Received a {type(optional).__name__} for argument {name}, but a tokenizer was expected."
                )
        # Stored under other names, since the base class would treat the attributes as mandatory sub-processors.
        self._question_tokenizer = question_tokenizer
        self._sound_tokenizer = sound_tokenizer
        super().__init__(feature_extractor, video_processor, tokenizer)

    @classmethod
    def from_config(
        cls, config: Any, question_tokenizer: Any = None, sound_tokenizer: Any = None, tokenizer: Any = None
    ) -> "CaeAvProcessor":
        """
        Build the processor for models of a configuration.

        Args:
            config: The [`CaeAvConfig`] or [`SsuFormerConfig`].
            question_tokenizer: Tokenizer of the questions for question answering; by default that of the words
                published by the authors of MUSIC-AVQA.
            sound_tokenizer: Tokenizer of descriptions of sounds for few-shot models; by default that saved beside
                CLAP, if the configuration knows where CLAP came from.
            tokenizer: Tokenizer of captions and descriptions; by default that saved in the folder of the text tower,
                or else CLIP's.

        Raises:
            CaeAvError: The tokenizer has more words than the configuration, or the task has no questions.
        """
        words = get_task(config.task).question_words
        if words is not None:
            if question_tokenizer is None:
                question_tokenizer = question_tokenizer_from_words(words)
            if len(question_tokenizer) > config.question_vocab_size:
                raise CaeAvError(
                    f"`question_tokenizer` has {len(question_tokenizer)} words; expected at most the "
                    f"{config.question_vocab_size} of `question_vocab_size`: give the one that belongs to the model"
                )
        elif question_tokenizer is not None:
            raise CaeAvError(f"`question_tokenizer` was given for a model of the task {config.task!r}, which has none")
        if sound_tokenizer is None and config.audio_text_config is not None:
            sound_tokenizer = load_sound_tokenizer((config.tower_sources or {}).get("audio_text"))
        if tokenizer is None:
            tokenizer = load_text_tokenizer((config.tower_sources or {}).get("text"), config.text_config.vocab_size)
        audio, text, (height, width) = config.audio_config, config.text_config, config.input_size
        return cls(
            feature_extractor=CaeAvFeatureExtractor(
                feature_size=audio.num_mel_bins,
                sampling_rate=audio.sampling_rate,
                fft_window_size=audio.fft_window_size,
                hop_length=audio.hop_length,
                frequency_min=audio.frequency_min,
                frequency_max=audio.frequency_max,
                segment_seconds=config.segment_seconds,
                # Filter banks and VGGish's input are those of the segment itself.
                tile_seconds=config.segment_seconds if audio.mel_scale in ("kaldi", "vggish") else audio.tile_seconds,
                tile_padding=audio.tile_padding,
                mel_scale=audio.mel_scale,
                spectrogram_dtype=audio.spectrogram_dtype,
                feature_mean=audio.feature_mean,
                feature_std=audio.feature_std,
                spectrogram_frames=audio.spectrogram_frames,
                filter_sampling_rate=audio.filter_sampling_rate,
                window_seconds=audio.window_seconds,
            ),
            video_processor=CaeAvVideoProcessor(**_resizing(height, width, config.frame_crop)),
            tokenizer=tokenizer or build_clip_tokenizer(text.vocab_size, text.context_length),
            question_tokenizer=question_tokenizer,
            num_frames=config.num_frames,
            id2label=config.id2label,
            mask_size=config.mask_size,
            frame_sampling=config.frame_sampling,
            sound_tokenizer=sound_tokenizer,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """
        Load a processor; see `ProcessorMixin.from_pretrained`.

        Raises:
            CaeAvError: A file is broken.
            OSError: There is no such processor, or a file of it is missing.
        """
        with reading(pretrained_model_name_or_path, f"a {cls.__name__}", passing=(OSError,)):
            processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            processor._try()
        return processor

    def _try(self) -> None:
        """Process a black, silent segment, so that settings which do not work fail where their file is known."""
        size: Any = self.video_processor.size
        crop: Any = self.video_processor.crop_size
        for side in filter(None, (*vars(size).values(), *vars(crop or size).values())):
            if not 0 < side <= _MOST_PIXELS:
                raise CaeAvError(f"`size` must be positive and at most {_MOST_PIXELS:,} pixels, got {shown(side)}")
        tokenizers = [self.tokenizer, self.question_tokenizer, self.sound_tokenizer]
        for tokenizer in filter(None, tokenizers):
            # Texts are padded to this length, unless it is Transformers' value for none.
            if not (0 < tokenizer.model_max_length <= _MOST_TOKENS or tokenizer.model_max_length > LARGE_INTEGER):
                raise CaeAvError(
                    f"`model_max_length` must be positive and at most {_MOST_TOKENS:,}, got "
                    f"{shown(tokenizer.model_max_length)}"
                )
        frames = np.zeros((1, 2, 2, 3), np.uint8)
        sound = np.zeros(self.feature_extractor.segment_samples, np.float32)
        self([frames], [sound], ["a"], ["a"], self.feature_extractor.sampling_rate)
        for tokenizer in filter(None, tokenizers[1:]):
            tokenizer("a", padding="max_length", truncation=True)

    @classmethod
    def get_attributes(cls) -> list[str]:
        # The base class requires every attribute that is listed here, so the optional ones are omitted.
        return [name for name in super().get_attributes() if name not in (_QUESTION_TOKENIZER, _SOUND_TOKENIZER)]

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        # The base class uses the Auto classes, which require that this package's classes are registered.
        own = ("num_frames", "id2label", "mask_size", "frame_sampling", _QUESTION_TOKENIZER, _SOUND_TOKENIZER)
        kwargs = {name: value for name, value in kwargs.items() if name not in own}
        parts = [
            part.from_pretrained(pretrained_model_name_or_path, **kwargs)
            for part in (CaeAvFeatureExtractor, CaeAvVideoProcessor, CLIPTokenizer)
        ]
        optional = {
            name: _saved_tokenizer(pretrained_model_name_or_path, name, **kwargs)
            for name in (_QUESTION_TOKENIZER, _SOUND_TOKENIZER)
        }
        # The returned values are the first arguments of `__init__`; the sound's tokenizer is one of the last.
        values = args[0]
        values[_SOUND_TOKENIZER] = optional[_SOUND_TOKENIZER]
        return [*parts, optional[_QUESTION_TOKENIZER]]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """
        Save the processor, see `ProcessorMixin.save_pretrained`; tokenizers of questions and of descriptions of sounds
        go into their own subfolders. Also writes a stub through which Transformers finds this package.
        """
        for name in (_QUESTION_TOKENIZER, _SOUND_TOKENIZER):
            # Saved before the base class uploads the folder.
            if getattr(self, name) is not None:
                getattr(self, name).save_pretrained(os.path.join(save_directory, name))
        write_stub(save_directory)
        self.auto_map = dict(AUTO_MAP)
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            del self.auto_map  # It belongs to the file only; a loaded processor has none.

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Do nothing: `save_pretrained` writes a stub, whereas the base class would copy this module."""

    @property
    def question_tokenizer(self) -> Any:
        """The tokenizer of the questions, or None."""
        return self._question_tokenizer

    @property
    def sound_tokenizer(self) -> Any:
        """The tokenizer of descriptions of sounds, or None."""
        return self._sound_tokenizer

    def class_prompts(
        self, names: Sequence[str], hypothesis_template: str = "The sounds of {}", num_context_tokens: int = 4
    ) -> dict[str, torch.Tensor]:
        """
        Convert class names to the texts that few-shot models match frames and sounds with.

        Args:
            names: The K names.
            hypothesis_template: Description of a sound, with `{}` for the name.
            num_context_tokens: Learned vectors in front of a name, for which the text has placeholders.

        Returns:
            **visual_prompt_ids** (K, N) int64, CLIP's ids of "X X X X NAME."; **sound_prompt_ids** (K, M) int64,
            CLAP's ids of "The sounds of NAME".

        Raises:
            CaeAvError: The processor has no `sound_tokenizer`, or a name is empty or too long.
        """
        if self.sound_tokenizer is None:
            raise CaeAvError(
                "the processor has no `sound_tokenizer`, which class names of few-shot models need: give CLAP's to "
                "`CaeAvProcessor.from_config(config, sound_tokenizer=AutoTokenizer.from_pretrained(...))`"
            )
        if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
            raise CaeAvError(f"names of classes must be text that is not empty, got {wrong[0]!r}")
        readable = [" ".join(bounded_text(name).replace("_", " ").split()) for name in names]
        context = " ".join(["X"] * num_context_tokens)
        texts = {
            "visual": (self.tokenizer, [clean_caption(f"{context} {name}.") for name in readable]),
            "sound": (self.sound_tokenizer, [hypothesis_template.format(name) for name in readable]),
        }
        prompts = {}
        for kind, (tokenizer, lines) in texts.items():
            ids = tokenizer(lines, padding="max_length", return_tensors="pt", max_length=tokenizer.model_max_length)
            if ids["input_ids"].shape[1] > tokenizer.model_max_length:
                longest = max(lines, key=len)
                raise CaeAvError(f"{longest!r} has more than the {tokenizer.model_max_length} tokens of a class name")
            prompts[f"{kind}_prompt_ids"] = ids["input_ids"]
        return prompts

    @property
    def model_input_names(self) -> list[str]:
        return [
            *("pixel_values_videos", "input_features", "frame_mask"),
            *("visual_caption_ids", "visual_caption_mask", "audio_caption_ids", "audio_caption_mask"),
            *(("question_ids", "question_mask") if self.question_tokenizer is not None else ()),
        ]

    @property
    def segment_seconds(self) -> float:
        """Length of a segment in seconds."""
        return self.feature_extractor.segment_seconds

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of the model's sound in Hz."""
        return self.feature_extractor.sampling_rate

    def load_clip(self, source: MediaSource, **kwargs: Any) -> Clip:
        """Call [`~media.clip.load_clip`] with this processor's segments and sampling rate; `kwargs` override them."""
        return load_clip(
            source,
            **{
                "num_segments": self.num_frames,
                "frame_sampling": self.frame_sampling,
                "segment_seconds": self.segment_seconds,
                "sampling_rate": self.sampling_rate,
                **kwargs,
            },
        )

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        visual_captions: str | Sequence[str | None] | None = None,
        audio_captions: str | Sequence[str | None] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        questions: str | Sequence[str] | None = None,
        on_missing_audio: MissingAudio = "error",
        descriptions: Sequence[str | None] | Sequence[Sequence[str | None]] | None = None,
    ) -> BatchFeature:
        """
        Convert one clip or a list of clips to the inputs of the model.

        Args:
            videos: A clip is a media file (path, URL, bytes, binary file object or `{"bytes": ..., "path": ...}`), a
                [`~media.clip.Clip`], a `VideoDecoder` of torchcodec, as in rows of `datasets`, or its frames, one per
                segment: (T, H, W, 3) or (T, 3, H, W), RGB, uint8 or floats in [0, 1], or a list of PIL images. From
                files, `num_frames` segments are read according to `frame_sampling`. For URLs see `media.remote`.
            audio: The sound of each clip, which replaces that of its file: a media file, an `AudioDecoder` of
                torchcodec, a waveform (samples,), (channels, samples) or (samples, channels), floats in [-1, 1], int16
                or int32, or `{"array": waveform, "sampling_rate": ...}`. Required for frames; it must have as many
                segments as there are frames. If segments are spread over a file, those of `audio` are taken at the
                same times.
            visual_captions, audio_captions: Captions of what is seen and heard in each clip. Give both or neither, and
                for all clips or none; None in a list means no caption.
            sampling_rate: Sampling rate of waveforms in `audio` in Hz, which are resampled to the model's. Required
                for waveforms.
            return_tensors: `"pt"` or `"np"`.
            questions: A question about each clip, if the processor has a `question_tokenizer`. Words after the
                tokenizer's `model_max_length` (14 by default) are cut off.
            on_missing_audio: How to treat a clip without sound: `"error"` raises, the default, since models should not
                be trained on missing sound; `"silence"` replaces it by silence, the default of the pipelines. An audio
                stream that cannot be decoded is always an error.
            descriptions: Targets of sound source understanding: for each clip a list of one text per segment, `""`
                where nothing sounds, None where it is not annotated; or such a list for the only clip.

        Returns:
            - **pixel_values_videos** (B, T, 3, size, size) float32.
            - **input_features** (B, T, 1, frames, mels) float32, log-mel spectrograms in dB.
            - **frame_mask** (B, T) bool, True for real segments; shorter clips are padded with zeros at the end.
            - **visual_caption_ids**, **visual_caption_mask**, **audio_caption_ids**, **audio_caption_mask**
              (B, context_length) int64, only with captions; id 0 and mask 0 are padding.
            - **question_ids**, **question_mask** (B, model_max_length) int64, only with questions.
            - **description_ids** (B, T, L) int64, only with descriptions: start, text, end, then -100; L is that of
              the longest text, and longer ones than the tokenizer's `model_max_length` are cut.

            Without `videos`, captions, questions or descriptions give only their own tensors.

        Raises:
            MediaError: A file cannot be decoded. The message begins with its name.
            CaeAvError: Numbers of clips, waveforms, captions and questions differ, one of them has a wrong shape, type
                or rate, or a question has no word that the tokenizer knows.
        """
        data: dict[str, torch.Tensor] = {}
        if videos is not None or audio is not None:
            check_missing_audio(on_missing_audio)
            data |= self._process_clips(videos, audio, sampling_rate, on_missing_audio)
        captions = {
            "visual": _caption_list(visual_captions, "visual"),
            "audio": _caption_list(audio_captions, "audio"),
        }
        if captions["visual"] is not None or captions["audio"] is not None:
            data |= self._process_captions(captions, len(data["frame_mask"]) if data else None)
        if questions is not None:
            count = next((len(tensor) for tensor in data.values()), None)
            data |= self._process_questions([questions] if isinstance(questions, str) else list(questions), count)
        if descriptions is not None:
            data |= self._process_descriptions(descriptions, data.get("frame_mask"))
        if not data:
            raise CaeAvError("nothing to process; expected `videos`, with or without captions")
        return BatchFeature(data, tensor_type=return_tensors)

    def _process_clips(
        self, videos: Any, audio: Any, sampling_rate: int | None, on_missing_audio: MissingAudio
    ) -> dict[str, torch.Tensor]:
        if videos is None:
            raise CaeAvError("`audio` was given without `videos`; expected both, since the model hears and sees")
        several = not is_frames(videos) if isinstance(videos, list | tuple) else getattr(videos, "ndim", 0) == 5
        sources = list(videos) if several else [videos]
        if not sources:
            raise CaeAvError("`videos` is an empty list; expected at least one clip")
        sounds = [None] * len(sources)
        if audio is not None:
            sounds = list(audio) if isinstance(audio, list | tuple) else [audio]
        if len(sounds) != len(sources):
            raise CaeAvError(f"{len(sources)} clips but {len(sounds)} sounds in `audio`; expected one for each clip")
        clips = [
            self._frames_and_waveform(index, source, sound, sampling_rate, on_missing_audio)
            for index, (source, sound) in enumerate(zip(sources, sounds, strict=True))
        ]
        seen = self.video_processor([frames for frames, _ in clips], input_data_format="channels_last")
        heard = self.feature_extractor([waveform for _, waveform in clips], sampling_rate=self.sampling_rate)
        return {
            "pixel_values_videos": seen["pixel_values_videos"],
            "input_features": heard["input_features"],
            "frame_mask": seen["frame_mask"],
        }

    def _frames_and_waveform(
        self, index: int, source: Any, sound: Any, rate: int | None, on_missing_audio: MissingAudio
    ) -> tuple[Any, Any]:
        """Return the frames (T, H, W, 3) of a clip and its waveform of T segments."""
        source = undecoded(source)
        given_frames = is_frames(source)
        if given_frames:
            name, frames, most = f"clip {index}", as_frames(source, f"clip {index}"), None
            if sound is None and on_missing_audio == "silence":
                return frames, np.zeros(len(frames) * self.feature_extractor.segment_samples, np.float32)
            if sound is None:
                raise CaeAvError(
                    f"clip {index} is given as frames without sound; expected its waveform in `audio`, or "
                    "`on_missing_audio='silence'`"
                )
        else:
            clip = source
            if not isinstance(source, Clip):
                clip = self._read(index, source, with_audio=sound is None, on_missing_audio=on_missing_audio)
            name, frames, most = clip.name, clip.frames, self.num_frames
            if sound is None:
                if is_video_decoder(source) and on_missing_audio == "silence":
                    return frames, np.zeros(len(frames) * self.feature_extractor.segment_samples, np.float32)
                if clip.sampling_rate != self.sampling_rate or not clip.waveform.size:
                    raise CaeAvError(
                        f"{clip.name}: read with {clip.waveform.size} samples at {clip.sampling_rate} Hz; expected "
                        f"sound at {self.sampling_rate} Hz"
                    )
                return frames, clip.waveform
        waveform = self.load_sound(sound, sampling_rate=rate, name=_sound_name(index, sound))
        if not given_frames and is_spread(self.frame_sampling):
            return frames, spread_sound(
                np.asarray(waveform),
                num_segments=len(frames),
                segment_seconds=self.segment_seconds,
                sampling_rate=self.sampling_rate,
                seconds=clip.duration,
                frame_sampling=self.frame_sampling,
            )
        count = count_segments(len(waveform) / self.sampling_rate, self.segment_seconds, most)
        if count != len(frames):
            raise CaeAvError(
                f"{name}: {len(frames)} frames but a sound of {len(waveform) / self.sampling_rate:.2f} s, which is "
                f"{count} segments; expected as many segments as frames"
            )
        return frames, waveform[: count * self.feature_extractor.segment_samples]

    def load_sound(self, sound: Any, *, sampling_rate: int | None = None, name: str = "the sound") -> np.ndarray:
        """
        Load a sound at the model's sampling rate.

        Args:
            sound, sampling_rate: See `audio` and `sampling_rate` of a call.
            name: Name in error messages.

        Returns:
            (samples,) float32, mono.

        Raises:
            MediaError: A file cannot be decoded.
            CaeAvError: A waveform has a wrong shape or type, or no sampling rate.
        """
        sound = undecoded(sound)
        if is_audio_decoder(sound):
            samples = sound.get_all_samples()
            sound, sampling_rate = samples.data, samples.sample_rate
        elif isinstance(sound, Mapping) and "array" in sound:
            sound, sampling_rate = sound["array"], sound.get("sampling_rate", sampling_rate)
            sound = sound if _is_array(sound) else np.asarray(sound, np.float32)
        if _is_array(sound):
            return as_waveform(sound, name, sampling_rate=sampling_rate, wanted=self.sampling_rate)
        return load_audio(sound, sampling_rate=self.sampling_rate, name=name)

    def _read(self, index: int, source: Any, **kwargs: Any) -> Clip:
        if is_video_decoder(source):
            return self.load_decoder(
                source, num_segments=self.num_frames, name=decoder_name(source) or f"clip {index}"
            )
        readable = isinstance(source, str | os.PathLike | bytes | Mapping) or hasattr(source, "read")
        if not readable:
            raise CaeAvError(
                f"clip {index} is a {type(source).__name__}; expected a media file (path, bytes, binary file object), "
                "a `Clip`, or an array of frames (T, H, W, 3)"
            )
        return self.load_clip(source, name=_name(index, source), **kwargs)

    def load_decoder(self, decoder: Any, *, num_segments: int | None, name: str) -> Clip:
        """Call [`~media.inputs.clip_of_decoder`] with this processor's segments and sampling rate."""
        return clip_of_decoder(
            decoder,
            num_segments=num_segments,
            sampling_rate=self.sampling_rate,
            segment_seconds=self.segment_seconds,
            frame_sampling=self.frame_sampling,
            name=name,
        )

    def _process_captions(
        self, captions: dict[str, list[str] | None], num_clips: int | None
    ) -> dict[str, torch.Tensor]:
        data = {}
        for kind, texts in captions.items():
            if texts is None:
                raise CaeAvError(f"`{kind}_captions` are missing; expected both kinds of captions or neither")
            expected = num_clips or len(captions["visual"] or ())
            if len(texts) != expected:
                raise CaeAvError(f"{len(texts)} captions in `{kind}_captions`; expected {expected}, one for each clip")
            encoded = self.tokenizer(
                [clean_caption(text) for text in texts], padding="max_length", truncation=True, return_tensors="pt"
            )
            data[f"{kind}_caption_ids"] = encoded["input_ids"]
            data[f"{kind}_caption_mask"] = encoded["attention_mask"]
        return data

    def _process_questions(self, questions: list[str], count: int | None) -> dict[str, torch.Tensor]:
        if count is not None and len(questions) != count:
            raise CaeAvError(f"{len(questions)} questions in `questions`; expected {count}, one for each clip")
        encoded = self.tokenize_questions(questions)
        tokenizer = self.question_tokenizer
        # Unknown words may share the id of padding (see `question_tokenizer_from_words`).
        known = (encoded["question_ids"] != tokenizer.unk_token_id) & encoded["question_mask"].bool()
        if strange := (~known.any(1)).nonzero().flatten().tolist():
            vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
            words = [word for word, _ in vocabulary if word not in (tokenizer.pad_token, tokenizer.unk_token)]
            shown = ", ".join(words[:_SHOWN_WORDS]) + (", ..." if len(words) > _SHOWN_WORDS else "")
            raise CaeAvError(
                f"question {strange[0]}, {questions[strange[0]]!r}, has no word that the model knows; expected some "
                f"of its {len(words)} words: {shown}"
            )
        return encoded

    def _process_descriptions(
        self, descriptions: Sequence[Any], frame_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        is_one_clip = all(text is None or isinstance(text, str) for text in descriptions)
        clips = [list(descriptions)] if is_one_clip else [list(clip) for clip in descriptions]
        if frame_mask is not None and [len(clip) for clip in clips] != frame_mask.sum(1).tolist():
            raise CaeAvError(
                f"`descriptions` has {', '.join(str(len(clip)) for clip in clips)} texts; expected one for each "
                f"segment, {', '.join(map(str, frame_mask.sum(1).tolist()))}"
            )
        return self.tokenize_descriptions(clips)

    def tokenize_descriptions(self, descriptions: Sequence[Sequence[str | None]]) -> dict[str, torch.Tensor]:
        """
        Convert the descriptions of each clip's segments to ids.

        Returns:
            **description_ids** (B, T, L) int64, see a call; T is the largest number of segments.

        Raises:
            CaeAvError: A description is neither a string nor None.
        """
        texts = [text for clip in descriptions for text in clip if text is not None]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise CaeAvError(f"`descriptions` holds a {type(wrong[0]).__name__}; expected strings, or None")
        rows = (
            iter(self.tokenizer([clean_caption(text) for text in texts], truncation=True)["input_ids"])
            if texts
            else iter(())
        )
        clips = [[None if text is None else next(rows) for text in clip] for clip in descriptions]
        longest = max((len(row) for clip in clips for row in clip if row is not None), default=2)
        ids = torch.full((len(clips), max(map(len, clips), default=0), longest), IGNORED_LABEL)
        for number, clip in enumerate(clips):
            for segment, row in enumerate(clip):
                if row is not None:
                    ids[number, segment, : len(row)] = torch.tensor(row)
        return {"description_ids": ids}

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[Any]:
        """
        Convert ids to texts.

        Args:
            sequences: (N, L) ids, or (B, T, L) for a list of texts per clip. Ids below 0, which pad descriptions, are
                left out.
            kwargs: Arguments of the tokenizer's `batch_decode`, such as `skip_special_tokens`.
        """
        if isinstance(sequences, torch.Tensor | np.ndarray) and sequences.ndim == 3:
            return [self.batch_decode(clip, **kwargs) for clip in sequences]
        rows = [row.tolist() if hasattr(row, "tolist") else list(row) for row in sequences]
        texts = self.tokenizer.batch_decode([[index for index in row if index >= 0] for row in rows], **kwargs)
        # CLIP's words, of which punctuation is one, are joined by spaces.
        return [self.tokenizer.clean_up_tokenization(text).strip() for text in texts]

    def tokenize_questions(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """
        Convert questions to ids. All words of a question may be unknown, as can happen in a test split.

        Returns:
            **question_ids**, **question_mask** (B, model_max_length) int64; id 0 and mask 0 are padding.

        Raises:
            CaeAvError: The processor has no `question_tokenizer`, or a question is not a string or has no words.
        """
        if self.question_tokenizer is None:
            raise CaeAvError(
                "`questions` were given, but the processor has no `question_tokenizer`; expected one made for a model "
                "of question answering"
            )
        if wrong := [question for question in questions if not isinstance(question, str)]:
            raise CaeAvError(f"`questions` holds a {type(wrong[0]).__name__}; expected strings")
        texts = [bounded_text(question) for question in questions]
        encoded = self.question_tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        if empty := (~encoded["attention_mask"].bool().any(1)).nonzero().flatten().tolist():
            raise CaeAvError(f"question {empty[0]}, {questions[empty[0]]!r}, has no word")
        return {"question_ids": encoded["input_ids"], "question_mask": encoded["attention_mask"]}

    def post_process_event_localization(
        self,
        outputs: Any,
        threshold: float = 0.5,
        segment_seconds: float | None = None,
        frame_mask: torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """
        Convert the output of [`CaeAvForEventLocalization`] to labelled segments and intervals.

        A segment has the clip's most likely class if sigmoid(event logit) > `threshold`, otherwise it is background.
        Its score is sigmoid(event logit) * softmax(class logits)[class], also for background.

        Head `mlp` predicts a class per segment, `frame_log_probs`. With p the probability of the most likely class
        other than background, a segment has this class if p / (p + background's) > `threshold`, otherwise it is
        background. Its score is p, also for background.

        Args:
            outputs: `event_logits` (B, T), `class_logits` (B, C) and, if the model returns them, `frame_log_probs`
                (B, T, C + 1), background last, `agreement` and `agreement_probs` (per stage (B, T)).
            threshold: From 0 to 1.
            segment_seconds: Length of a segment in seconds; by default the processor's.
            frame_mask: (B, T), True for real segments; by default that of `outputs`, or all. Padded segments are
                omitted from the result.

        Returns:
            For each clip a dict of
            - **intervals**: runs of segments with the same label, without background: dicts of `label`, `label_id`,
              `start` and `end` (seconds from the start of the first segment) and `score`, the mean over the segments.
            - **segments**: label of each segment, or `"background"`.
            - **scores**: score of each segment.
            - **agreement**: agreement of each segment at the last stage, or None if the model has none: the
              probability that sound and picture belong together if the model was trained with
              `agreement_loss_weight`, otherwise the cosine of Eq. 1, which says nothing about misalignment.
            - **misaligned**: runs of segments with a probability below 0.5: dicts of `start`, `end` and `agreement`,
              their mean. None if the agreement is a cosine.

        Raises:
            CaeAvError: A tensor has a wrong shape, or `threshold` lies outside [0, 1].
        """
        return get_task("ave").result_module.post_process(self, outputs, threshold, segment_seconds, frame_mask)

    def localized_segments(
        self, outputs: Any, threshold: float = 0.5, frame_mask: torch.Tensor | None = None
    ) -> list[Any]:
        """
        Return the segments of [`CaeAvForEventLocalization`]'s output for each clip. Those of consecutive parts of a
        clip can be joined before [`CaeAvProcessor.events_of`] converts them to intervals.

        Args:
            outputs, threshold, frame_mask: See [`CaeAvProcessor.post_process_event_localization`].

        Raises:
            CaeAvError: A tensor has a wrong shape, or `threshold` lies outside [0, 1].
        """
        return get_task("ave").result_module.localized_segments(outputs, threshold, frame_mask)

    def events_of(self, segments: Any, segment_seconds: float | None = None) -> dict[str, Any]:
        """Return the events of one clip, see [`CaeAvProcessor.post_process_event_localization`]."""
        return get_task("ave").result_module.events_of(self, segments, segment_seconds)

    def post_process_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.5,
        frame_mask: torch.Tensor | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """
        Convert the output of [`CaeAvForSegmentation`] to maps at each clip's own resolution.

        Args:
            outputs: `logits` (B, T, 1, S, S).
            target_sizes: Height and width of each clip in pixels; by default S and S. The model reads clips resized to
                a square, so the maps are resized back.
            threshold: From 0 to 1; pixels with a higher probability belong to the mask.
            frame_mask: (B, T), True for real frames; by default that of `outputs`, or all. Padded frames are omitted.

        Returns:
            For each clip a dict of
            - **probabilities**: (frames, H, W) float32.
            - **masks**: (frames, H, W) bool.

        Raises:
            CaeAvError: A tensor has a wrong shape, `threshold` lies outside [0, 1], or the number of sizes is not that
                of the clips.
        """
        return get_task("avs_s4").result_module.post_process(self, outputs, target_sizes, threshold, frame_mask)

    def post_process_sound_source_understanding(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.5,
        frame_mask: torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """
        Convert the output of [`SsuFormerForSoundSourceUnderstanding`] to masks and sentences.

        Args:
            outputs: `logits` (B, T, 1, S, S), `description_ids` (B, T, L), or both.
            target_sizes, threshold, frame_mask: See [`CaeAvProcessor.post_process_segmentation`].

        Returns:
            For each clip a dict of
            - **probabilities**, **masks**: See [`CaeAvProcessor.post_process_segmentation`]; missing without `logits`.
            - **descriptions**: one text per frame, `""` where nothing sounds; missing without `description_ids`.

        Raises:
            CaeAvError: A tensor has a wrong shape, there is none, `threshold` lies outside [0, 1], or the number of
                sizes is not that of the clips.
        """
        return get_task("ra_ssu").result_module.post_process(self, outputs, target_sizes, threshold, frame_mask)

    def post_process_video_parsing(
        self,
        outputs: Any,
        threshold: float = 0.5,
        video_threshold: float = 0.5,
        frame_mask: torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """
        Convert the output of [`CaeAvForVideoParsing`] to tracks of labelled intervals of what is heard and seen.

        Args:
            outputs, threshold, video_threshold, frame_mask: See [`CaeAvProcessor.parsed_segments`].

        Returns:
            For each clip a dict of
            - **audible**, **visible**: runs of segments in which a class is heard, or seen, sorted by start: dicts of
              `label`, `label_id`, `start` and `end` (seconds from the start of the first segment) and `score`, the
              mean of the segments' probabilities. Runs of different classes may overlap.
            - **both**: the same for segments in which a class is both heard and seen; a segment's score is the product
              of its two probabilities.
            - **agreement**, **misaligned**: See [`CaeAvProcessor.post_process_event_localization`].

        Raises:
            CaeAvError: A tensor has a wrong shape, or a threshold lies outside [0, 1].
        """
        return get_task("avvp").result_module.post_process(self, outputs, threshold, video_threshold, frame_mask)

    def parsed_segments(
        self,
        outputs: Any,
        threshold: float = 0.5,
        video_threshold: float = 0.5,
        frame_mask: torch.Tensor | None = None,
    ) -> list[Any]:
        """
        Return the segments of [`CaeAvForVideoParsing`]'s output for each clip. Those of consecutive parts of a clip
        can be joined before [`CaeAvProcessor.parsing_tracks`] converts them to intervals.

        [`~tasks.video_parsing.results.has_class`] decides whether a segment has a class. Frame probabilities of the
        official formulation may exceed 1; scores are clamped to 1.

        Args:
            outputs: `audio_probs`, `visual_probs` (B, C), `audio_frame_probs`, `visual_frame_probs` (B, T, C) and, if
                the model returns them, `agreement` and `agreement_probs` (per stage (B, T)).
            threshold, video_threshold: From 0 to 1.
            frame_mask: (B, T), True for real segments; by default that of `outputs`, or all. Padded segments are
                omitted.

        Raises:
            CaeAvError: A tensor has a wrong shape, or a threshold lies outside [0, 1].
        """
        return get_task("avvp").result_module.parsed_segments(outputs, threshold, video_threshold, frame_mask)

    def parsing_tracks(self, segments: Any) -> dict[str, Any]:
        """Return the tracks of one clip, see [`CaeAvProcessor.post_process_video_parsing`]."""
        return get_task("avvp").result_module.parsing_tracks(self, segments)

    def post_process_question_answering(
        self, outputs: Any, top_k: int = 5, frame_mask: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        """
        Convert the output of [`CaeAvForQuestionAnswering`] to answers, attention over time, and grounding.

        Args:
            outputs: `logits` (B, answers) and, if the model returns them, `grounding` (B, T, tokens of a square grid),
                `visual_attention`, `audio_attention` and `frame_mask` (B, T).
            top_k: Maximum number of answers to return.
            frame_mask: (B, T), True for real segments; by default that of `outputs`, or all. Padded segments are
                omitted. If the model was given `clip_index`, the mask of `outputs` has one row per clip, so pass
                `outputs.frame_mask[clip_index]`.

        Returns:
            For each question a dict of
            - **answers**: dicts of `answer`, `label_id` and `score`, its probability, the most likely first.
            - **visual_attention**, **audio_attention**: the question's attention to each segment's picture and sound,
              which sums to 1; None if the model returns none.
            - **grounding**: (segments, rows, columns) float32, the sound's attention to each part of a frame, which
              sums to 1; None if the model returns none.

        Raises:
            CaeAvError: A tensor has a wrong shape, or `top_k` is below 1.
        """
        return get_task("avqa").result_module.post_process(self, outputs, top_k, frame_mask)

    def post_process_zero_shot_classification(
        self, outputs: Any, labels: Sequence[str], frame_mask: torch.Tensor | None = None
    ) -> list[list[dict[str, Any]]]:
        """
        Convert the output of [`CaeAvForFewShotLocalization`] to probabilities of the labels.

        Args:
            outputs: `logits` (B, T, K).
            labels: The K labels, for example those given to [`CaeAvProcessor.class_prompts`].
            frame_mask: (B, T), True for real segments; by default that of `outputs`, or all.

        Returns:
            For each clip a list of dicts, the most likely label first: **score**, the softmax of the mean over the
            segments; **label**; **segments**, the softmax in each segment.

        Raises:
            CaeAvError: The number of labels is not that of the logits.
        """
        return get_task("ave_few_shot").result_module.post_process(self, outputs, list(labels), frame_mask)

    def label_name(self, label_id: int) -> str:
        """
        Return the name of a class.

        Raises:
            CaeAvError: The processor has no name for the class.
        """
        if self.id2label is None:
            return f"LABEL_{label_id}"
        if label_id not in self.id2label:
            raise CaeAvError(
                f"class {label_id} of the outputs has no name in `id2label`, which has {len(self.id2label)} names; "
                "expected a processor made for the same classes as the model"
            )
        return self.id2label[label_id]


def _resizing(height: int, width: int, crops: bool) -> dict[str, Any]:
    """Return settings of the video processor that makes frames of a size, with or without cropping."""
    size = {"height": height, "width": width}
    if not crops:
        return {"size": size}
    return {
        "size": {"shortest_edge": max(height, width)},
        "crop_size": size,
        "do_center_crop": True,
        "resample": PILImageResampling.BILINEAR,
    }


def _saved_tokenizer(folder: Any, name: str, **kwargs: Any) -> Any:
    """Load the tokenizer in a subfolder of a saved processor; `None` if there is none."""
    subfolder = os.path.join(kwargs.pop("subfolder", ""), name)
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
    found = cached_file(
        folder,
        "tokenizer.json",
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        **{key: kwargs[key] for key in hub if key in kwargs},
    )
    return None if found is None else PreTrainedTokenizerFast.from_pretrained(folder, subfolder=subfolder, **kwargs)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _sound_name(index: int, sound: Any) -> str:
    name = sound_name(sound, f"sound {index}")
    return f"sound {index} {name}" if name.startswith("<") else name


def _name(index: int, source: Any) -> str:
    """Return a source's name in errors: its path, or its index in the list if it has none."""
    name = source_name(source)
    return f"clip {index} {name}" if name.startswith("<") else name


def _caption_list(captions: str | Sequence[str | None] | None, kind: str) -> list[str] | None:
    """Return the captions as a list, or `None` if there are none."""
    if captions is None:
        return None
    texts = [captions] if isinstance(captions, str) else list(captions)
    missing = [index for index, text in enumerate(texts) if text is None]
    if len(missing) == len(texts):
        return None
    if missing:
        raise CaeAvError(
            f"`{kind}_captions` has no caption for clip {', '.join(map(str, missing))}; expected captions for all "
            "clips of a batch or for none"
        )
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise CaeAvError(f"`{kind}_captions` holds a {type(wrong[0]).__name__}; expected strings")
    return [text for text in texts if text is not None]
