"""The doors of models: weights, configurations, processor and tokenizer files, recipes, authors' checkpoints."""

import io
import json
import random
import shutil
import struct
import sys
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hostile_checkpoints import make_checkpoints, mutate_checkpoint, mutate_saved, open_checkpoint
from hostile_mutators import (
    NUMBERS,
    STRINGS,
    Change,
    Door,
    Link,
    Original,
    Pairs,
    encode,
    mutate_bytes,
    mutate_file,
    mutate_files,
    mutate_tree,
    read_tree,
    to_tree,
    value,
    write_tree,
)
from safetensors.torch import save_file

from caeav_hf import CaeAvConfig, CaeAvProcessor
from caeav_hf.conversion import from_official, load_checkpoint
from caeav_hf.errors import reading
from caeav_hf.hub import read_config_and_task
from caeav_hf.pipelines.loading import load_pipeline
from caeav_hf.processing import build_question_tokenizer
from caeav_hf.robustness.records import Record, StackedSums, read_fingerprint
from caeav_hf.task import get_task, tasks
from caeav_hf.tasks.question_answering.metric import AnswerSums
from caeav_hf.tasks.video_parsing.visual_3d import find_features, read_features
from caeav_hf.training.build import build_model, build_processor, load_trained_model
from caeav_hf.training.caption_features import FOLDER, CaptionFeatureStore
from caeav_hf.training.checkpointing import (
    STATE_FOLDER,
    find_checkpoint,
    read_loop_state,
    restore_training_state,
)
from caeav_hf.training.recipe import RECIPES, Recipe, load_recipe
from caeav_hf.training.sharding import full_state_dicts
from caeav_hf.training.state import LoopState, random_state


def _is_even(folder: Path) -> bool:
    """Return whether the number of an input, which ends the name of its folder, is even."""
    return int(folder.name.rpartition("-")[2]) % 2 == 0


# Weights in safetensors files

_DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "f32", "")


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change a safetensors file: its header as a tree, what it says about one tensor, its length, or the values."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(rng, data)
    if kind == 1:
        lie = rng.choice([0, 1, length - 1, length + 1, len(data), 2**31, 100_000_001, 2**63 - 1, 2**64 - 1])
        return struct.pack("<Q", lie) + header + body
    if kind == 2:
        cut = rng.randrange(len(body) + 1)
        return data[: 8 + length] + rng.choice([body[:cut], b"", body + b"\0" * rng.choice([1, 4096])])
    if kind == 3:
        values = rng.choice([np.nan, np.inf, 3e38, 0.0])
        return data[: 8 + length] + np.full(len(body) // 4, values, np.float32).tobytes() + body[: len(body) % 4]
    tree = read_tree(header.decode())
    if kind < 7:
        tree = mutate_tree(rng, tree)
    else:
        for _ in range(rng.choice([1, 1, 2])):
            index = rng.randrange(len(tree))
            tree[index] = (tree[index][0], _lie(rng, tree[index][1], len(body)))
    text = encode(rng, write_tree(tree))
    return struct.pack("<Q", len(text)) + text + body


def _lie(rng: random.Random, entry: Any, size: int) -> Any:
    """Change what a header says about a tensor."""
    entry = Pairs(entry) if isinstance(entry, list) else Pairs()
    shapes = [
        [10**12],
        [2**63],
        [2**32, 2**32],
        [-1],
        [],
        [0],
        [1] * 100,
        [[1]],
        ["1"],
        [1.5],
        [None],
        [0, 10**18],
        None,
    ]
    offsets = [[0, 4], [4, 0], [0, size], [size, size + 4], [-4, 0], [0, 10**18], [0], [1, 2, 3], "0", [0, 2**64]]
    lies = {"dtype": rng.choice(_DTYPES), "shape": rng.choice(shapes), "data_offsets": rng.choice(offsets)}
    name = rng.choice(list(lies))
    return Pairs((key, lies[name] if key == name else old) for key, old in entry)


@cache
def _toy_recipe(name: str) -> tuple[Recipe, list[str] | None]:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    return recipe, None if get_task(recipe.task).class_column is None else ["dog", "bell"]


def _save_toy_model(name: str, folder: Path, **options: Any) -> None:
    recipe, names = _toy_recipe(name)
    torch.manual_seed(0)
    tokenizer = None
    if get_task(recipe.task).question_words is not None:
        tokenizer = build_question_tokenizer(["what is this", "is it loud"])
    model = build_model(recipe, names, tokenizer)
    model.save_pretrained(folder, **options)
    build_processor(model, question_tokenizer=tokenizer).save_pretrained(folder)


def _make_weights(folder: Path) -> None:
    _save_toy_model("ave_toy", folder / "whole")
    _save_toy_model("ave_toy", folder / "shards", max_shard_size="4MB")
    _save_toy_model("ave_toy", folder / "adapters", adapter_only=True)
    _save_toy_model("avs_ms3_toy", folder / "masks")
    shutil.copytree(folder / "adapters", folder / "pickled")
    weights = folder / "pickled" / "model.safetensors"
    torch.save(load_checkpoint(weights), folder / "pickled" / "pytorch_model.bin")
    weights.unlink()


def _mutate_weights(rng: random.Random, original: Original) -> Change:
    if rng.random() < 0.02:
        return {name: mutate_file(rng, name, original.read(name)) for name in original.names("*.safetensors")[:1]}
    if original.names("*.bin"):
        return mutate_checkpoint(rng, original)
    indexes = original.names("*.index.json")
    if not indexes or rng.random() < 0.3:
        name = rng.choice(original.names("*.safetensors"))
        return {name: mutate_safetensors(rng, original.read(name))}
    index = json.loads(original.read(indexes[0]))
    shard = original.names("*.safetensors")[0]
    if rng.random() < 0.4:
        return {indexes[0]: encode(rng, write_tree(mutate_tree(rng, to_tree(index))))}
    absolute = str(original.folder / shard)
    names = [f"../{shard}", absolute, "/etc/passwd", "", ".", "..", "config.json", indexes[0], shard + "\0", 3, None]
    chosen = rng.choice([*names, [shard], "missing.safetensors", rng.choice(STRINGS)])
    keys = rng.sample(sorted(index["weight_map"]), rng.choice([1, 1, len(index["weight_map"])]))
    index["weight_map"] |= dict.fromkeys(keys, chosen)
    changes: dict[str, bytes | Link | None] = {indexes[0]: json.dumps(index).encode()}
    if rng.random() < 0.2:
        changes[shard] = Link(rng.choice([shard, absolute, "/etc/passwd", "/dev/null", "nowhere"]))
    return changes


def _open_model(folder: Path) -> Any:
    """Load a model as the commands do, or through its class."""
    if _is_even(folder):
        _, task = read_config_and_task(folder)
        return load_pipeline(str(folder), task, "cpu")
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    task = next(task for task in _records() if task.model_name == architecture)
    return task.model_class.from_pretrained(folder)


def _records() -> list[Any]:
    return [record for task in tasks().values() for record in task.records()]


# Configurations

_CONFIGS = (
    "ave_toy",
    "avvp_toy",
    "avs_ms3_toy",
    "avqa_toy",
    "ra_ssu_toy",
    "ssuformer_avs_ms3_toy",
    "ave_few_shot_toy",
)
_METHODS = ("dg_sct_ave_toy", "lavish_ave_toy", "stg_cma_ave_toy")

_CODE = "hostile_code.Hostile"
_EVIL: dict[str, tuple[Any, ...]] = {
    "auto_map": ({"AutoConfig": _CODE, "AutoModel": _CODE, "AutoProcessor": _CODE}, "os.system",
        {"AutoConfig": 3}, [_CODE]),
    "custom_pipelines": ({"audio-visual-event-localization": {"impl": _CODE, "pt": [_CODE], "type": "multimodal"}}, 3),
    "torch_dtype": ("os.system", "load", "float31", 3, "auto", {"a": "float32"}, "__class__", "int8", "complex64"),
    "dtype": ("os.system", "load", "float31", 3, "hub", "nn", "bfloat16", "uint4"),
    "_name_or_path": ("../../etc", "https://example.invalid/x", "a/b", "\0"),
    "architectures": (["os.system"], [], "CaeAvModel", [None], ["CaeAvForQuestionAnswering"], 3),
    "model_type": ("cae_av_vision", "bert", "os", "../x", 3, None, "", "ssuformer", "timm_wrapper",
        "clap_audio_model"),
    "quantization_config": ({"quant_method": "bitsandbytes"}, {"quant_method": "awq"}, {}, 3, {"load_in_4bit": True}),
    "num_labels": (10**9, -1, 0, "2", 1.5),
    "id2label": ({"a": "b"}, {"10000000000": "x"}, [1], {}, {"0": ["a"]}),
    "attn_implementation": ("eager", "flash_attention_2", "hub/kernel", "os.system"),
    "_attn_implementation": ("flash_attention_2", "kernels-community/x", 3),
    "transformers_weights": ("../model.safetensors", "x.bin"),
    "tower_sources": ({"vision": {"name": "/etc/passwd", "revision": None, "sha256": ""}}, {"vision": "x"}, [], "x"),
    "adapter_only": (True, "yes", 3),
    "lora": ({"r": 10**9, "target_modules": ".*"}, {"r": 8}, {}, "x", {"r": 8, "auto_mapping": {"x": "os.system"}}),
    "tokenizer_class": ("os.system", "CLIPTokenizerFast", "BertTokenizer", 3),
    "processor_class": ("os.system", "CLIPProcessor", 3),
    "task": ("ave", "avqa", "os.system", 3, None, ["ave"]),
    "interaction": ("dg_sct", "lavish", "os.system", 3, "none"),
    "interaction_options": ({"x": 1}, {"reduction": 0}, {"reduction": 10**9}, [], 3),
    "per_layer_config": ({"0": {"hidden_size": 3}}, [1], 3),
    "gradient_checkpointing": (True, "x"),
    "transformers_version": ("99.0", "x", 3, None),
    "rope_scaling": ({"type": "x"}, 3),
}  # fmt: skip


def _make_configs(folder: Path) -> None:
    for name in (*_CONFIGS, *_METHODS):
        _save_toy_model(name, folder / name)


def _mutate_config(rng: random.Random, original: Original) -> Change:
    data = original.read("config.json")
    kind = rng.randrange(10)
    if kind == 0:
        return {"config.json": mutate_file(rng, "config.json", data)}
    if kind == 1:
        base = rng.choice(["../x", "/etc", "a/b", str(original.folder)])
        adapter: dict[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": base}
        code = {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}}
        adapter |= rng.choice([{}, code, {"r": -1}])
        return {"adapter_config.json": encode(rng, write_tree(mutate_tree(rng, to_tree(adapter))))}
    tree = read_tree(data.decode())
    if kind < 5:
        for _ in range(rng.choice([1, 1, 2])):
            key = rng.choice(list(_EVIL))
            holders = [tree, *(item for _, item in tree if isinstance(item, Pairs))]
            holder = tree if rng.random() < 0.7 else rng.choice(holders)
            holder[:] = [pair for pair in holder if pair[0] != key] + [(key, to_tree(rng.choice(_EVIL[key])))]
    elif kind < 8:  # another number for a number
        places = []
        for node in [tree, *(item for _, item in tree if isinstance(item, Pairs))]:
            places += [(node, index) for index, (_, item) in enumerate(node) if isinstance(item, int | float | list)]
        for node, index in rng.sample(places, rng.choice([1, 1, 2, 3])):
            key, old = node[index]
            new = rng.choice(
                [rng.choice(NUMBERS), rng.choice([old, 1]) if isinstance(old, list) else old * 10**6, -1, 0]
            )
            if isinstance(old, list) and old and rng.random() < 0.8:
                at = rng.randrange(len(old))
                new = [*old[:at], rng.choice([new, value(rng)]), *old[at + 1 :]]
            node[index] = (key, new)
    else:
        tree = mutate_tree(rng, tree)
    return {"config.json": encode(rng, write_tree(tree)), "hostile_code.py": _HOSTILE_CODE}


# Never imported unless the user trusts it.
_HOSTILE_CODE = b"import os\n\nos.system('touch hostile')\n\n\nclass Hostile:\n    pass\n"


def _open_config(folder: Path) -> Any:
    if _is_even(folder):
        config, task = read_config_and_task(folder)
        return load_pipeline(str(folder), task, "cpu")
    config = CaeAvConfig.from_pretrained(folder)
    return load_trained_model(get_task(config.task, config.interaction).model_class, folder)


# Processors and tokenizers


def _make_processors(folder: Path) -> None:
    for name in ("ave_toy", "avqa_toy", "ave_few_shot_toy", "ra_ssu_toy"):
        _save_toy_model(name, folder / name)
        for path in folder.glob(f"{name}/*.safetensors"):
            path.unlink()
    processor = CaeAvProcessor.from_pretrained(folder / "ave_toy")
    (folder / "parts").mkdir()
    # As saved before the parts of a processor shared a file.
    for part in (processor.feature_extractor, processor.tokenizer):
        part.save_pretrained(folder / "parts")
    vocabulary = json.loads((folder / "ave_toy" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "parts" / "vocab.json").write_text(json.dumps(vocabulary["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in vocabulary["merges"])
    (folder / "parts" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    shutil.copyfile(folder / "ave_toy" / "processor_config.json", folder / "parts" / "processor_config.json")
    (folder / "parts" / "tokenizer.json").unlink()


_EVIL_TOKENIZER: tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...] = (
    (("pre_tokenizer",), ({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed",
     "invert": False}, None)),
    (("normalizer",), ({"type": "Replace", "pattern": {"Regex": "(.*)*(.*)*x"}, "content": "a" * 10**6},
     {"type": "Nmt"})),
    (("normalizer",), ({"type": "Replace", "pattern": {"String": ""}, "content": "aa"}, {"type": "Prepend",
     "prepend": ""})),
    (("normalizer",), ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "os.system"})),
    (("truncation",), ({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 10**9},)),
    (("padding",), ({"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
      "pad_type_id": 0, "pad_token": "!"},)),
    (("model", "type"), ("Unigram", "WordPiece", "WordLevel", "os.system", 3)),
    (("model", "dropout"), (2.0, -1, "x")),
    (("model", "vocab"), ({}, {"a": 4294967295}, {"a": -1}, {"a": 0, "b": 0}, [], {"!": 10**12})),
    (("model", "merges"), ([["x", "y"]], ["a"], [["a"] * 3], "x", [[]])),
    (("added_tokens",), ([{"id": 4294967295, "content": "x"}], [{"id": 10**9, "content": "a", "single_word": False,
      "lstrip": False, "rstrip": False, "normalized": False, "special": True}], [])),
    (("post_processor",), ({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}, None)),
    (("decoder",), ({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}] * 1000}, None)),
)  # fmt: skip
_EVIL_SETTINGS: dict[str, tuple[Any, ...]] = {
    "auto_map": ({"AutoTokenizer": [_CODE, _CODE], "AutoProcessor": _CODE}, "os.system"),
    "tokenizer_class": ("os.system", "Hostile", "BertTokenizer", "CaeAvProcessor", 3),
    "processor_class": ("os.system", "CLIPProcessor", 3),
    "model_max_length": (10**30, -1, 0, "x", 10**9, 1.5),
    "chat_template": ("{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}a{% endfor %}", 3),
    "tokenizer_file": ("/etc/passwd", "../tokenizer.json"),
    "vocab_file": ("/etc/passwd",),
    "added_tokens_decoder": ({"4294967295": {"content": "x"}}, {"a": 1}, {"0": {"content": 3}}),
    "extra_special_tokens": ({"x": "y"}, [1], ["a" * 10**6]),
    "feature_extractor_type": ("os.system", "ClapFeatureExtractor", 3),
    "video_processor_type": ("os.system", "CLIPVideoProcessor", 3),
    "feature_size": (10**9, 0, -1, 1.5), "sampling_rate": (10**9, 1, 0, -1), "fft_window_size": (10**9, 1, 2,
        0, 10**6),
    "hop_length": (1, 0, -1, 10**9), "frequency_max": (10**9, 0, float("nan")), "segment_seconds": (10**9, 0,
        1e-9, float("nan")),
    "tile_seconds": (10**9, 0, 1e-9), "spectrogram_frames": (10**9, 0), "filter_sampling_rate": (10**12, 1),
    "size": ({"height": 10**6, "width": 10**6}, {"height": 0, "width": 1}, {"shortest_edge": 10**5}, 3, {"a": 1}),
    "crop_size": ({"height": 10**6, "width": 10**6}, -1), "resample": (99, -1, "x"), "rescale_factor": (0,
        float("nan"), "x"),
    "image_mean": ([0], [1, 2, 3, 4], "x"), "image_std": ([0, 0, 0], 0), "num_frames": (10**9, 0, -1, "x"),
    "mask_size": (10**9, 0), "id2label": ({"x": "y"}, [], 3), "frame_sampling": ("x", 3),
    "default_to_square": ("x",), "fps": (10**9,), "do_sample_frames": (True,), "padding_side": ("up",),
        "device": ("cuda:99", "x"),
}  # fmt: skip


def _mutate_processor(rng: random.Random, original: Original) -> Change:
    names = original.names(
        "*tokenizer*.json", "*processor_config.json", "*special_tokens_map.json", "*vocab*", "*merges*"
    )
    name = rng.choice(names)
    if rng.random() < 0.4 or name.endswith((".txt", "vocab.json")):
        return {name: mutate_file(rng, name, original.read(name))}
    values = json.loads(original.read(name))
    for _ in range(rng.choice([1, 1, 2])):
        if name.endswith("tokenizer.json"):
            (*path, last), choices = rng.choice(_EVIL_TOKENIZER)
            holder = values
            for key in path:
                holder = holder[key]
        else:
            last = rng.choice(list(_EVIL_SETTINGS))
            choices = _EVIL_SETTINGS[last]
            holders = [values, *(item for item in values.values() if isinstance(item, dict))]
            with_key = [holder for holder in holders if last in holder]
            holder = rng.choice(with_key or holders)
        holder[last] = rng.choice(choices)
    return {name: encode(rng, write_tree(to_tree(values))), "hostile_code.py": _HOSTILE_CODE}


def _open_processor(folder: Path) -> Any:
    processor = CaeAvProcessor.from_pretrained(folder)
    questions = None if processor.question_tokenizer is None else ["is it loud"]
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    sound = generator.normal(0, 0.1, 32_000).astype(np.float32)
    texts = ["a dog barks " + "a" * 40]
    return processor([frames], [sound], texts, texts, 16_000, questions=questions)


# Other files of tensors: caption features, robustness scores, 3D features


def _make_tensors(folder: Path) -> None:
    features = folder / "captions" / FOLDER / ("0" * 16)
    features.mkdir(parents=True)
    tensors = {f"caption: {text}": torch.rand(5, 8) for text in ("a dog", "a bell", "rain")}
    metadata = {"format": "caeav-caption-features-1", "text_tower": "0" * 64}
    save_file(tensors, features / "features-00000.safetensors", metadata)
    task = get_task("avqa")
    answers = [AnswerSums(Counter(["a", name]), Counter(["a", "a", name])) for name in "bcd"]
    (folder / "scores").mkdir()
    record = Record(np.arange(3), np.arange(3), StackedSums.stack(answers, task), np.zeros((3, 2), np.int8), None)
    record.save(folder / "scores" / "scores.safetensors", {"seed": 3})
    for name in ("saved", "published"):
        (folder / name).mkdir()
    save_file({"visual_3d": torch.rand(10, 8)}, folder / "saved" / "clip.safetensors")
    np.save(folder / "published" / "clip.npy", np.random.default_rng(0).random((10, 8), np.float32))


def _mutate_tensors(rng: random.Random, original: Original) -> Change:
    (name,) = original.names("*")
    if rng.random() < 0.05:
        return {name: mutate_file(rng, name, original.read(name))}
    return {name: (mutate_safetensors if name.endswith(".safetensors") else _mutate_npy)(rng, original.read(name))}


def _mutate_npy(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    shape = rng.choice(
        ["(10, 8)", "(10**12,)", "(1000000000000, 8)", "(-1, 8)", "(0, 8)", "(10, 8, 1)", "'x'", "(" * 99]
    )
    kind = rng.choice(["'<f4'", "'<f8'", "'|O'", "'<U9'", "'<c16'", "'?'", "[('a', '<f4')]", "3", "'<f999'", "'" * 3])
    more = rng.choice(["", "", "'x': 1, ", "__import__('os').system('touch hostile'), ", "1: " * 1000])
    order = rng.choice(["True", "False", "3"])
    header = f"{{{more}'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return data[:8] + struct.pack("<H", rng.choice([len(header), len(header), 0, 65_535])) + header + data[128:]


def _open_tensors(folder: Path) -> Any:
    if (folder / FOLDER).exists():
        store = CaptionFeatureStore(folder, "0" * 64)
        return [store[text] for text in store]
    if (folder / "scores.safetensors").is_symlink() or (folder / "scores.safetensors").exists():
        record = Record.load(folder / "scores.safetensors")
        return read_fingerprint(folder / "scores.safetensors"), record.sums.totals(np.ones((1, len(record.rows))))
    path = find_features(folder, ["clip"])
    return None if path is None else read_features(path)


# What training continues from


def _tiny_training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def _make_states(folder: Path) -> None:
    state = folder / "run" / STATE_FOLDER
    state.mkdir(parents=True)
    _, optimizer = full_state_dicts(*_tiny_training())
    torch.save(
        {"optimizer": optimizer, "scaler": None, "average": {"weight": torch.ones(2, 4)}}, state / "optimizer.pt"
    )
    torch.save(random_state(), state / "random-0.pt")
    loop = LoopState(
        epoch=3, step=40, best_checkpoint="step-00000020", best_value=0.5, loss_totals={"loss": [1.0, 2.0]}
    )
    (state / "loop.json").write_text(json.dumps(loop.to_dict(), indent=1), encoding="utf-8")


def _mutate_state(rng: random.Random, original: Original) -> Change:
    name = rng.choice(original.names())
    if name.endswith(".json"):
        return {name: mutate_file(rng, name, original.read(name))}
    return {name: mutate_saved(rng, original.read(name))}


def _open_state(folder: Path) -> Any:
    model, optimizer = _tiny_training()
    accelerator: Any = SimpleNamespace(process_index=0, scaler=None, unwrap_model=lambda model, **options: model)
    checkpoint = find_checkpoint(folder)
    state = read_loop_state(checkpoint)
    restore_training_state(checkpoint, model, SimpleNamespace(optimizer=optimizer), accelerator)
    return state


# Whole checkpoints of the authors, converted


def _make_official(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.conversion.official_state import UNTOLD, official_state, small_config, small_model

    assert UNTOLD == _UNTOLD
    (folder / "ave").mkdir()
    torch.save(official_state(small_model(small_config("ave"))), folder / "ave" / "official.pth")


_UNTOLD = {"head_num_heads": 4, "mask_size": 64}


def _mutate_official(rng: random.Random, original: Original) -> Change:
    """Change names, shapes and kinds of a few tensors, or of all whose names have a part in common."""
    (name,) = original.names()
    state = torch.load(io.BytesIO(original.read(name)), weights_only=True)
    part = rng.choice([part for key in rng.choices(list(state), k=3) for part in key.split(".")])
    keys = [key for key in state if part in key.split(".")] if rng.random() < 0.5 else rng.choices(list(state), k=2)
    for key in keys:
        tensor = state.pop(key, None)
        kind = rng.randrange(9)
        if tensor is None or kind == 0:
            continue
        if kind == 1 and tensor.ndim:
            tensor = tensor[..., :-1]
        elif kind == 2:
            tensor = tensor[None]
        elif kind == 3:
            tensor = tensor.reshape(-1)
        elif kind == 4 and tensor.ndim:
            tensor = torch.cat([tensor, tensor])
        elif kind == 5:
            tensor = tensor.to(rng.choice([torch.int8, torch.complex64, torch.bool, torch.float16]))
        elif kind == 6:
            tensor = torch.zeros(rng.choice([(0,), (), (1, 0, 3), (1,) * 7, (100_000,), (1, 100_000)]))
        elif kind == 7:
            others = [key + "x", key.replace(".0.", ".1000000."), key.partition(".")[2], key.replace("0", "7"), ""]
            key = rng.choice(others)
        elif tensor.is_floating_point():
            tensor = torch.full_like(tensor, float("nan"))
        state[key] = tensor.clone()
    file = io.BytesIO()
    torch.save(state, file)
    return {name: file.getvalue()}


def _open_official(folder: Path) -> Any:
    path = folder / "official.pth"
    with reading(path, "a checkpoint of the authors"):  # as `caeav convert` does
        text = {"num_hidden_layers": 1, "vocab_size": 514}
        return from_official(
            load_checkpoint(path), "ave", audio={"tile_seconds": 1}, text_config=text, copy=False, **_UNTOLD
        )


# Recipes


def _make_recipes(folder: Path) -> None:
    for name in ("ave", "avqa_toy", "ra_ssu_toy", "dg_sct_ave_toy", "avs_ms3_toy"):
        (folder / name).mkdir()
        shutil.copyfile(RECIPES / f"{name}.yaml", folder / name / "recipe.yaml")


def _open_recipe(folder: Path) -> Any:
    """Do what training does before it reads data."""
    recipe = load_recipe(folder / "recipe.yaml")
    return build_model(recipe, ["dog", "bell"], None)


_RECIPE_VALUES = tuple(item.name for item in fields(Recipe))


_CLEAR = (OSError, ValueError)
_QUESTION = ("question 0",)
DOORS = (
    Door("weights", _make_weights, _mutate_weights, _open_model, share=0.3, allowed=_CLEAR),
    Door("config.json", _make_configs, _mutate_config, _open_config, share=0.5, memory=2500, allowed=_CLEAR),
    Door("processors", _make_processors, _mutate_processor, _open_processor, allowed=_CLEAR, names=_QUESTION),
    Door("feature files", _make_tensors, _mutate_tensors, _open_tensors),
    Door("training states", _make_states, _mutate_state, _open_state),
    Door("recipes", _make_recipes, mutate_files("*.yaml"), _open_recipe, share=1.5, names=_RECIPE_VALUES),
    Door("checkpoints", make_checkpoints, mutate_checkpoint, open_checkpoint, share=2.5),
    Door("conversion", _make_official, _mutate_official, _open_official, share=0.1),
)
