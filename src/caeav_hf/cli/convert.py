"""The command `caeav convert`: convert a checkpoint of the authors' code to a folder for `from_pretrained`."""

import argparse
import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conversion.flags import FLAGS
from ..errors import CaeAvError, reading
from ..files import atomic_folder


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..configuration_cae_av import CaeAvConfig
    from ..modeling import CaeAvPreTrainedModel


_TEXT_IN = "The text tower is `{text}`."
_TEXT_OUT = (
    "The checkpoint has no text tower, so the one in this folder is random: pass caption features to the model "
    "(`visual_caption_embeds`, `audio_caption_embeds`), or convert again with `--text`."
)


def add_command(commands: Any) -> None:
    """Add the command to the subparsers of `caeav`."""
    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint of the authors' code for CAE-AV, AVMoE, DG-SCT, LAVisH or STG-CMA to a model "
        "folder",
        description="Convert a checkpoint of the authors' code to a folder for from_pretrained: model, configuration, "
        "processor, card, and a report on every key. Sizes are read from the tensors. No code in the file is run.",
    )
    convert.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CHECKPOINT",
        help="one or more files: .pt, .pth, .ckpt, .bin, .safetensors",
    )
    convert.add_argument("--task", required=True, choices=FLAGS, help="task of the model")
    convert.add_argument(
        "--method",
        metavar="NAME",
        help="method of the model, cae_av, avmoe, dg_sct, lavish or stg_cma (default: found by the keys of the "
        "checkpoint)",
    )
    convert.add_argument("--out", required=True, metavar="DIR", help="output folder")
    convert.add_argument(
        "--option",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the authors' training flags, such as num_skip=2 is_bn=1; those that shape the model are checked against "
        "the tensors, the others are listed in the report",
    )
    convert.add_argument(
        "--vision",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of another Swin-V2, such as window_size=8",
    )
    convert.add_argument(
        "--audio",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of another HTS-AT or front end, such as tile_seconds=1, or of LAVisH's filter banks",
    )
    convert.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="fields of CaeAvConfig that do not follow from the tensors",
    )
    convert.add_argument(
        "--text", metavar="NAME", help="CLIP text tower for captions: ViT-L-14/openai, a Hub repository or a folder"
    )
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    # Imported here since these take seconds to load.
    from ..conversion import from_official, load_checkpoint
    from ..processing import CaeAvProcessor

    state: dict[str, Any] = {}
    for path in options.checkpoint:
        tensors = load_checkpoint(path)
        if twice := sorted(set(state) & set(tensors)):
            raise CaeAvError(f"{path}: holds {twice[0]!r}, which is in another file too")
        state |= tensors
    arguments: dict[str, Any] = {
        "options": _values("--option", options.option),
        "vision": _values("--vision", options.vision),
        "audio": _values("--audio", options.audio),
        **_values("--config", options.config),
    }
    with reading(", ".join(options.checkpoint), "a checkpoint of the authors"):
        model = from_official(
            state,
            options.task,
            text=options.text,
            method=options.method,
            copy=False,  # a copy beside the mapped file would double the memory
            **arguments,
        )
    out = Path(options.out)
    report = model.conversion_report
    content = {"mapped": report.mapped, "ignored": report.ignored, "missing": report.missing}
    content["without_effect"] = report.without_effect
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        CaeAvProcessor.from_config(model.config).save_pretrained(folder)
        (folder / "conversion.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _card(model, options, report.summary()).save(folder / "README.md")
    print(report.summary())
    print(f"{type(model).__name__} written to {out}")
    return 0


def _card(model: "CaeAvPreTrainedModel", options: argparse.Namespace, summary: str) -> "ModelCard":
    from huggingface_hub import ModelCard, ModelCardData

    from ..training.card import LOCAL_NAME, TEMPLATES

    return ModelCard.from_template(
        ModelCardData(library_name="caeav-hf", tags=["audio-visual", model.config.interaction.replace("_", "-")]),
        template_path=str(TEMPLATES / "converted_model.md"),
        title=Path(options.out).name,
        model_class=type(model).__name__,
        files=", ".join(f"`{Path(path).name}`" for path in options.checkpoint),
        task=options.task,
        text=_text_note(model.config, options.text),
        folder=LOCAL_NAME,
        summary=summary,
    )


def _text_note(config: "CaeAvConfig", text: str | None) -> str:
    """Return what the card says about the text tower: nothing for a method without captions."""
    if text is not None:
        return _TEXT_IN.format(text=text)
    return _TEXT_OUT if config.use_text_tower else ""


def _values(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs; a value that is not a Python literal is text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CaeAvError(f"{flag} expects NAME=VALUE, got {pair!r}")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values
