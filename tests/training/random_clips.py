"""Random clips for every task, with everything that makes shares of a batch unequal."""

from typing import Any

import torch

from tests.training.tiny_training import next_readable


class RandomClips(torch.utils.data.Dataset):
    """
    Clips of one to three segments. Some have no caption, some no label, and those whose index is in `broken` are
    replaced by the next one. For question answering, up to three successive questions are about one clip.
    """

    def __init__(
        self, config: Any, count: int, seed: int = 0, broken: tuple[int, ...] = (), processor: Any = None
    ) -> None:
        self.config, self.broken, self.processor = config, broken, processor
        self.generator = torch.Generator().manual_seed(seed)
        questions = config.task == "avqa"
        self.groups = [index // 3 for index in range(count)] if questions else None
        self.rows = {
            "question_type": ["Audio" if index % 2 else "Visual" for index in range(count)],
            "question_subtype": ["Counting"] * count,
            "descriptions": [["a b", "", None][: 1 + index % 3] for index in range(count)],
        }
        clips = [self._clip(index) for index in range(1 + self.groups[-1] if self.groups else count)]
        numbers = self.groups or range(count)
        self.items = [{**clips[number], **self._targets(index, clips[number])} for index, number in enumerate(numbers)]

    def column(self, name: str) -> list[str]:
        return self.rows[name]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        found = next_readable(index, len(self), self.broken)
        return self.items[found] if found == index else {**self.items[found], "replaces": torch.tensor(index)}

    def _integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def _clip(self, index: int) -> dict[str, torch.Tensor]:
        config, sides, length = self.config, self.config.audio_config.spectrogram_size, 1 + index % 3
        size = config.vision_config.image_size
        clip = {
            "pixel_values_videos": torch.randn(length, 3, size, size, generator=self.generator),
            "input_features": 15 * torch.randn(length, 1, *sides, generator=self.generator) - 30,
        }
        if index % 4 < 2:  # two with captions, two without, so that whole batches have none
            for side in ("visual", "audio"):
                ids = 1 + self._integers(config.text_config.vocab_size - 3, 4 + index % 3)
                clip |= {f"{side}_caption_ids": ids, f"{side}_caption_mask": torch.ones_like(ids)}
        return clip

    def _targets(self, index: int, clip: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        config, length = self.config, len(clip["pixel_values_videos"])
        if config.task == "ave":
            background = torch.full((length,), config.num_labels)
            return {"labels": self._integers(config.num_labels + 1, length) if index % 5 else background}
        if config.task == "avvp":
            shape = (length, config.num_labels)
            return {
                "labels": self._integers(2, config.num_labels).float(),
                "audio_labels": self._integers(2, *shape).float(),
                "visual_labels": self._integers(2, *shape).float(),
            }
        if config.task == "avqa":
            label = self._integers(config.num_labels)[()] if index % 5 else torch.tensor(-100)
            words = 1 + self._integers(config.question_vocab_size - 1, 3 + index % 3)
            mask = torch.ones_like(words)
            if config.is_official:
                # It also reads the padding, which the processor makes the same in every batch.
                words, mask = (torch.nn.functional.pad(value, (0, 5 - len(words))) for value in (words, mask))
            return {"labels": label, "question_ids": words, "question_mask": mask}
        masks = self._integers(2, length, config.mask_size, config.mask_size).to(torch.int8)
        if config.task == "ra_ssu":
            return {"labels": masks, "description_ids": self._descriptions(index, length)}
        masks[1 if config.task == "avs_s4" else 1 + index % 2 :] = -100
        return {"labels": masks}

    def _descriptions(self, index: int, length: int) -> torch.Tensor:
        """Return ids of a description of each segment; that of the last one is empty, or not known."""
        last = self.config.text_config.vocab_size - 1
        ids = 1 + self._integers(last - 3, length, 4 + index % 3)
        ids[:, 0], ids[:, -1] = last - 1, last
        ids[-1, 1], ids[-1, 2:] = last, -100
        if index % 4 == 0:
            ids[-1] = -100
        return ids
