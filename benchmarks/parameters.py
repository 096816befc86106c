"""
Count the trainable parameters of the full-size models, by part, and compare them with the authors' code.

    python benchmarks/parameters.py              # all tasks
    python benchmarks/parameters.py --task ave   # one
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import torch

from caeav_hf import CaeAvConfig, CaeAvPreTrainedModel
from caeav_hf.modeling.interaction import BlockPosition, pair_positions
from caeav_hf.task import get_task


# Modules that the authors' code builds but never runs; only the official formulation has them.
UNUSED = re.compile(r"\.template\.|unused_self_attention")

# Trainable parameters of the authors' code, counted in it: all it builds, and without the parts it never uses: the
# relation decoders' self-attention (ave), the gating's decoders and the layers around the PVT (avs_*), fc_a*_pure and
# norm3 (avqa).
AUTHORS = {
    "ave": (200_847_849, 200_321_513),
    "avvp": (214_464_467, 214_464_467),
    "avs_s4": (362_626_635, 342_878_795),
    "avs_ms3": (255_533_339, 235_785_499),
    "avqa": (278_462_326, 274_917_238),
}
# Table II: parameters of event localization with both backbones, in millions, and the trained share in percent.
TABLE_II = (460.9, 43.5)

# Counted in DG-SCT's code: its adapters; and all that it builds outside the towers, with the part of it from which no
# gradient comes.
DG_SCT_ADAPTERS = {
    "ave": 188_538_864,
    "avvp": 193_293_216,
    "avs_s4": 188_505_720,
    "avs_ms3": 196_592_760,
    "avqa": 186_336_456,
}
DG_SCT = {
    "ave": (201_184_839, 4_764_336),
    "avvp": (198_809_491, 5_482_465),
    "avs_s4": (334_668_417, 198_348_480),
    "avs_ms3": (342_755_457, 117_192_048),
    "avqa": (256_751_988, 3_545_088),
}
# The PVT of the code for segmentation, which never runs.
PVT = 81_443_008
# Its Table 6: parameters of event localization with both backbones, in millions, and the trained share in percent.
DG_SCT_TABLE_6 = (461.3, 43.6)

# DG-SCT's few-shot code: the adapters, with parameters that have no effect on any output; both bottlenecks of the
# embeddings; the context; the map of the contrast.
FEW_SHOT = {"adapters": 97_299_648, "bottlenecks": 262_144, "context": 2_048, "contrast": 262_656}

# Trained parameters of LAVisH's code, of segmentation without the PVT that never runs. The norms of the tower, which
# its command for question answering trains too, are not among them.
LAVISH = {"ave": 10_036_061, "avs_s4": 38_317_009, "avqa": 21_017_452}

# STG-CMA's code: task, tower, size of the adapters, other fields of the configuration, trained parameters and all.
STG_CMA_TOWERS: dict[str, dict[str, Any]] = {
    "ViT-B/16": {"model_type": "cae_av_vit", "patch_size": 16, "num_attention_heads": 8},
    "ViT-L/14": {
        "model_type": "cae_av_vit",
        "patch_size": 14,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "Swin-B": {"embed_dim": 128, "num_heads": (4, 8, 16, 32)},
    "Swin-L": {},
}
STG_CMA: list[tuple[str, str, str, dict[str, Any], int, int]] = [
    ("ave", "ViT-B/16", "tiny", {}, 3_529_973, 89_562_101),
    ("ave", "ViT-B/16", "base", {}, 11_497_781, 97_529_909),
    ("ave", "ViT-L/14", "tiny", {}, 10_675_789, 314_119_757),
    ("ave", "ViT-L/14", "base", {}, 20_117_581, 323_561_549),
    ("ave", "Swin-B", "tiny", {}, 5_599_957, 92_345_613),
    ("ave", "Swin-B", "base", {}, 10_068_597, 96_814_253),
    ("ave", "Swin-L", "tiny", {}, 11_740_697, 206_739_821),
    ("ave", "Swin-L", "base", {}, 19_026_857, 214_025_981),
    ("avs_s4", "Swin-B", "base", {}, 29_739_753, 116_485_409),
    ("avs_s4", "Swin-L", "base", {}, 38_601_925, 233_601_049),
    (
        "avqa",
        "Swin-L",
        "base",
        {"head_answer_size": 512, "head_answer_audio_size": 128, "head_audio_hidden": True},
        26_339_000,
        221_338_124,
    ),
    ("avqa", "Swin-L", "base", {}, 83_127_864, 278_126_988),
]


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to."""
    if UNUSED.search(name):
        return "built, never used"
    if name.startswith("head."):
        return "task head"
    if "_tower." in name:
        return "tower norms"
    if "_caste." in name:
        return "CASTE"
    if ".interactions." in name:
        return "adapters"
    names = {
        "caption_mapper": "caption mapper",
        "case": "CASE",
        "projections": "loss projections",
        "temporal_embeddings": "temporal embeddings",
    }
    return names[name.split(".")[1]]


def build(task: str, formulation: str, **values: Any) -> CaeAvPreTrainedModel:
    """Build the full-size model on the meta device; video parsing with 3D features, as in the authors' code."""
    if task == "avvp":
        values["visual_3d_size"] = 512
    with torch.device("meta"):
        return get_task(task).model_class(CaeAvConfig.from_preset(task, formulation=formulation, **values))


def count(task: str, formulation: str, **values: Any) -> dict[str, int]:
    """Count the trainable parameters of each part."""
    parts: dict[str, int] = {}
    for name, parameter in build(task, formulation, **values).named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    return parts


def linear(inputs: int, outputs: int) -> int:
    """Count the parameters of a linear map."""
    return inputs * outputs + outputs


def without_place(task: str) -> dict[str, int]:
    """Count parameters that the authors' code builds but never runs, and that conversion ignores."""
    if task == "avqa":
        return {"fc_a1_pure, fc_a2_pure, norm3": linear(768, 1536) + linear(1536, 1536) + 2 * 1536}
    if not task.startswith("avs"):
        return {}
    attention, layer_norm = 4 * linear(256, 256), 2 * 256
    layer = 2 * attention + linear(256, 1024) + linear(1024, 256) + 2 * layer_norm
    decoders = 4 * (linear(512, 256) + linear(256, 256) + 2 * layer)
    pvt_widths = (64, 128, 320, 512)
    return {
        "gating's decoders and their templates": decoders + 8 * layer,
        "conv1-4": sum(4 * linear(9 * width, 256) for width in pvt_widths),
        "x1-4_linear": sum(linear(192 * 2**stage, width) for stage, width in enumerate(pvt_widths)),
        "path4.resConfUnit1": 2 * linear(9 * 256, 256),
    }


def show(task: str) -> None:
    """Print the table of a task."""
    columns = {formulation: count(task, formulation) for formulation in ("paper", "official")}
    print(f"{task:40}{'paper':>14}{'official':>14}")
    for part in sorted(set(columns["paper"]) | set(columns["official"])):
        print(f"{part:40}{columns['paper'].get(part, 0):14,}{columns['official'].get(part, 0):14,}")
    ours = {formulation: sum(parts.values()) for formulation, parts in columns.items()}
    print(f"{'trainable':40}{ours['paper']:14,}{ours['official']:14,}")
    total = ours["official"]
    for name, number in without_place(task).items():
        total += number
        print(f"{'  ignored: ' + name:40}{'':14}{number:14,}")
    built, used = AUTHORS[task]
    print(f"{'trainable, with ignored parts':40}{'':14}{total:14,}")
    print(f"{'the code: all it builds':40}{'':14}{built:14,}")
    print(f"{'the code: without unused parts':40}{'':14}{used:14,}")
    if task == "ave":
        show_table_ii(built)
    print()


def show_table_ii(trainable: int) -> None:
    """Print the totals of Table II."""
    total = trainable + frozen_parameters()
    print(f"{'with both backbones, whole':40}{'':14}{total:14,}")
    print(f"{'  of which trainable':40}{'':14}{trainable / total:14.1%}")
    print(f"{'Table II, total in millions':40}{'':14}{TABLE_II[0]:14}")
    print(f"{'  of which trainable':40}{'':14}{TABLE_II[1]:13}%")


def frozen_parameters() -> int:
    """Count both backbones with their original classifiers and the front end, as both methods' code has them."""
    vision, audio, _ = build("ave", "official").cae_av.towers()
    frozen = sum(parameter.numel() for tower in (vision, audio) for parameter in tower.parameters())
    # The classifiers of ImageNet-22k, and of AudioSet: a convolution and a linear map.
    frozen += 1536 * 21841 + 21841 + (527 * 768 * 2 * 3 + 527) + (527 * 527 + 527)
    # HTS-AT keeps its Fourier matrices and mel filters as parameters.
    return frozen + 2 * 513 * 1024 + 513 * 64


def without_place_in_dg_sct(task: str) -> tuple[dict[str, int], dict[str, int]]:
    """
    Count parameters that DG-SCT's code builds without effect and that models here lack: of the adapters, and of the
    rest outside the towers.
    """
    config = CaeAvConfig.from_preset(task)
    pairs = [place for stage in pair_positions(config.visual_stages, config.audio_stages) for place in stage]
    places = [
        (own, other) for place in pairs for own, other in ((place.visual, place.audio), (place.audio, place.visual))
    ]
    places *= 2  # beside attention and beside the feed-forward

    def each(size: Callable[[BlockPosition, BlockPosition], int]) -> int:
        return sum(size(own, other) for own, other in places)

    adapters: dict[str, int] = {}
    if task in ("ave", "avvp"):
        adapters["gate_tk"] = each(lambda own, other: 1)
    if task == "avvp":
        adapters["fc_caption"] = each(lambda own, other: linear(512, 192))
    if task in ("avvp", "avs_s4", "avs_ms3"):
        adapters["temporal_gated"] = each(lambda own, other: linear(own.hidden_size, 1))
    if task.startswith("avs"):
        adapters["ln_before"] = each(lambda own, other: 2 * own.hidden_size)
    if task == "avs_s4":
        adapters["conv_adapter"] = each(lambda own, other: linear(other.num_tokens, own.num_tokens))
    rest = without_place(task)
    if task == "ave":
        rest["CMBS.AVInter, VAInter, their norms and two more"] = 2 * 4 * linear(256, 256) + 4 * 2 * 256
    if task in ("ave", "avvp"):
        # From a 16th to an 8th of the channels of each later stage.
        rest["adapter_token_downsampler"] = sum(
            stage.hidden_size // 16 * stage.hidden_size // 8 for stage in config.visual_stages[1:]
        )
    if task == "avvp":
        lstm = 2 * (4 * 64 * 128 + 4 * 64 * 64 + 2 * 4 * 64)
        layer = 4 * linear(64, 64) + linear(64, 1024) + linear(1024, 64) + 2 * 2 * 64
        rest["temporal_attn, the gate of the sound"] = lstm + linear(128, 64) + 3 * layer + linear(64, 1)
    if task.startswith("avs"):
        rest["encoder_backbone, the PVT"] = PVT
    return adapters, rest


def show_dg_sct(task: str) -> None:
    """Print the parameters of DG-SCT for a task, of its adapters and outside the towers, beside those of its code."""
    parts = count(task, "official", method="dg_sct")
    of_adapters, of_rest = without_place_in_dg_sct(task)
    print(f"{f'{task}, DG-SCT':54}{'official':>14}")
    print(f"{'adapters':54}{parts['adapters']:14,}")
    for name, number in of_adapters.items():
        print(f"{'  built, never used: ' + name:54}{number:14,}")
    print(f"{'  with these':54}{parts['adapters'] + sum(of_adapters.values()):14,}")
    print(f"{'  the code':54}{DG_SCT_ADAPTERS[task]:14,}")
    total = sum(parts.values())
    print(f"{'outside the towers':54}{total:14,}")
    for name, number in of_rest.items():
        print(f"{'  built, never used: ' + name:54}{number:14,}")
    outside, without_effect = DG_SCT[task]
    of_all = sum(of_adapters.values()) + sum(of_rest.values())
    total += of_all
    print(f"{'  with all of these':54}{total:14,}")
    print(f"{'  the code':54}{outside:14,}")
    print(f"{'  of these without effect':54}{of_all + parts.get('built, never used', 0):14,}")
    print(f"{'  the code':54}{without_effect:14,}")
    if task == "ave":
        trained = total - of_rest["adapter_token_downsampler"]
        whole = total + frozen_parameters()
        print(f"{'  of which the code trains':54}{trained:14,}")
        print(f"{'with both backbones, whole':54}{whole:14,}")
        print(f"{'  of which trained':54}{trained / whole:14.1%}")
        print(f"{'Table 6, total in millions':54}{DG_SCT_TABLE_6[0]:14}")
        print(f"{'  of which trained':54}{DG_SCT_TABLE_6[1]:13}%")
    print()


def without_place_in_lavish(task: str) -> dict[str, int]:
    """Count parameters that LAVisH's code builds and trains but never runs, and that models here lack."""
    if task == "avs_s4":
        stages = CaeAvConfig.from_preset(task).visual_stages
        return {
            "ln_before": sum(4 * stage.depth * 2 * stage.hidden_size for stage in stages),
            "path4.resConfUnit1": 2 * linear(9 * 256, 256),
        }
    if task == "avqa":
        return {
            "fc_a1, fc_a1_pure, fc_a2_pure": 2 * linear(128, 512) + linear(512, 512),
            "fc_v, fc, fc_st, fc_aq, fc_vq, norm3": linear(2048, 512)
            + linear(1024, 512)
            + 3 * linear(512, 512)
            + 1024,
        }
    return {}


def show_lavish(task: str) -> None:
    """Print the parameters of LAVisH for a task, whose tower is frozen."""
    parts = count(task, "official", method="lavish")
    print(f"{f'{task}, LAVisH':54}{'official':>14}")
    for part, number in sorted(parts.items()):
        print(f"{part:54}{number:14,}")
    total = sum(parts.values())
    print(f"{'trainable':54}{total:14,}")
    if task in LAVISH:
        total -= parts.get("tower norms", 0)
        for name, number in without_place_in_lavish(task).items():
            print(f"{'  built, never used: ' + name:54}{number:14,}")
            total += number
        print(f"{'  with all of these, without norms of the tower':54}{total:14,}")
        print(f"{'  the code':54}{LAVISH[task]:14,}")
    print()


def count_few_shot() -> dict[str, int]:
    """Count the parameters of DG-SCT's few-shot model that are trained, by part."""
    model = build("ave_few_shot", "official")
    parts = dict.fromkeys(FEW_SHOT, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = next((part for part in ("context", "contrast") if f"head.{part}" in name), "bottlenecks")
            parts["adapters" if ".interactions." in name else own] += parameter.numel()
    return parts


def without_place_in_few_shot() -> dict[str, int]:
    """Count parameters of the few-shot adapters that the authors' code builds but never runs."""
    adapters = 2 * 2 * 12  # streams, branches, pairs
    return {"gate_tk": adapters, "fc_caption": adapters * linear(512, 192)}


def show_few_shot() -> None:
    """Print the parameters of the few-shot model."""
    parts = count_few_shot()
    print(f"{'few-shot, DG-SCT':40}{'here':>14}{'the code':>14}")
    for part, number in parts.items():
        print(f"{part:40}{number:14,}{FEW_SHOT[part]:14,}")
    for name, number in without_place_in_few_shot().items():
        print(f"{'  built, never used: ' + name:40}{number:14,}")
        parts["adapters"] += number
    print(f"{'adapters with these':40}{parts['adapters']:14,}{FEW_SHOT['adapters']:14,}")
    print()


def count_stg_cma(task: str, tower: str, size: str, values: dict[str, Any]) -> tuple[int, int]:
    """Count the trained parameters of STG-CMA and all."""
    options = {"vision_config": STG_CMA_TOWERS[tower], "interaction_options": {"size": size}}
    parameters = list(build(task, "official", method="stg_cma", **options, **values).parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in parameters)


def without_place_in_stg_cma(task: str) -> int:
    """Count parameters that STG-CMA's code builds and trains but never runs: path4.resConfUnit1 of segmentation."""
    return 2 * linear(9 * 256, 256) if task == "avs_s4" else 0


def show_stg_cma(task: str) -> None:
    """Print the rows of STG-CMA for a task."""
    rows = [row for row in STG_CMA if row[0] == task]
    if not rows:
        return
    columns = ("trained", "total", "never used", "code: trained", "code: total")
    print(f"{f'{task}, STG-CMA':24}" + "".join(f"{column:>14}" for column in columns))
    for _, tower, size, values, trained, total in rows:
        numbers = (*count_stg_cma(task, tower, size, values), without_place_in_stg_cma(task), trained, total)
        print(f"{f'{tower}, {size}':24}" + "".join(f"{number:14,}" for number in numbers))
    print()


def show_shared() -> None:
    """Print the rows of Table II in which one Swin-V2 is shared by both streams."""
    base = {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}
    print(f"{'ave, one tower for both streams':40}{'paper':>14}{'official':>14}")
    for size, vision in (("large", {}), ("base", base)):
        for name, parts in (("CAE-AV", {}), ("AVMoE", {"interaction": "avmoe", "use_case": False})):
            values = {"shared_tower": True, "vision_config": vision, **parts}
            trainable = [sum(count("ave", formulation, **values).values()) for formulation in ("paper", "official")]
            print(f"{f'Swin-V2-{size}, {name}, trainable':40}{trainable[0]:14,}{trainable[1]:14,}")
    print()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=AUTHORS, help="one task; by default all")
    task = parser.parse_args().task
    for name in AUTHORS if task is None else (task,):
        show(name)
        show_dg_sct(name)
        show_lavish(name)
        show_stg_cma(name)
    if task is None:
        show_few_shot()
    if task in (None, "ave"):
        show_shared()


if __name__ == "__main__":
    main()
