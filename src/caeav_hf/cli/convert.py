"""The command `caeav convert`: a checkpoint of the authors' code becomes a folder for `from_pretrained`."""

import argparse
import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conversion.flags import FLAGS
from ..errors import CaeAvError


if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..modeling import CaeAvPreTrainedModel


_TEXT_IN = "The text tower is `{text}`."
_TEXT_OUT = (
    "The checkpoint holds no text tower, so that of this folder is random: give the model features of captions "
    "(`visual_caption_embeds`, `audio_caption_embeds`), or convert again with `--text`."
)


def add_command(commands: Any) -> None:
    """Adds the command to the subparsers of `caeav`."""
    convert = commands.add_parser(
        "convert",
        help="turn a checkpoint of the authors' code, of CAE-AV or AVMoE, into a model folder",
        description="Turn a checkpoint of the authors' code into a folder for from_pretrained: model, configuration, "
        "processor, card, and a report on every key. Sizes are read from the tensors. Nothing in the file is run.",
    )
    convert.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CHECKPOINT",
        help="its file, or several: .pt, .pth, .ckpt, .bin, .safetensors",
    )
    convert.add_argument("--task", required=True, choices=FLAGS, help="what the model was trained for")
    convert.add_argument("--out", required=True, metavar="DIR", help="folder for the model")
    convert.add_argument(
        "--option",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the authors' training flags: what shapes the model is checked against the tensors, the report lists the "
        "others: num_skip=2 is_bn=1 ...",
    )
    convert.add_argument(
        "--vision", nargs="+", default=[], metavar="NAME=VALUE", help="of another Swin-V2: window_size=8 ..."
    )
    convert.add_argument(
        "--audio",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of another HTS-AT or front end: tile_seconds=1 ...",
    )
    convert.add_argument(
        "--config", nargs="+", default=[], metavar="NAME=VALUE", help="fields of CaeAvConfig that no tensor tells"
    )
    convert.add_argument(
        "--text", metavar="NAME", help="CLIP text tower for captions: ViT-L-14/openai, a Hub repository or a folder"
    )
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    # Only now, since these take seconds to load.
    from ..conversion import from_official, load_checkpoint
    from ..processing import CaeAvProcessor

    state: dict[str, Any] = {}
    for path in options.checkpoint:
        tensors = load_checkpoint(path)
        if twice := sorted(set(state) & set(tensors)):
            raise CaeAvError(f"{path}: holds {twice[0]!r}, as another file does")
        state |= tensors
    model = from_official(
        state,
        options.task,
        options=_values("--option", options.option),
        vision=_values("--vision", options.vision),
        audio=_values("--audio", options.audio),
        text=options.text,
        copy=False,  # the file's pages and a copy of them would be twice the memory
        **_values("--config", options.config),
    )
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        CaeAvProcessor.from_config(model.config).save_pretrained(out)
        report = model.conversion_report
        content = {"mapped": report.mapped, "ignored": report.ignored, "missing": report.missing}
        content["without_effect"] = report.without_effect
        (out / "conversion.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _card(model, options, report.summary()).save(out / "README.md")
    except OSError as error:
        raise CaeAvError(f"{out}: cannot be written: {error}") from error
    print(report.summary())
    print(f"{type(model).__name__} written to {out}")
    return 0


def _card(model: "CaeAvPreTrainedModel", options: argparse.Namespace, summary: str) -> "ModelCard":
    from huggingface_hub import ModelCard, ModelCardData

    from ..training.card import LOCAL_NAME, TEMPLATES

    return ModelCard.from_template(
        ModelCardData(library_name="caeav-hf", tags=["audio-visual", "cae-av"]),
        template_path=str(TEMPLATES / "converted_model.md"),
        title=Path(options.out).name,
        model_class=type(model).__name__,
        files=", ".join(f"`{Path(path).name}`" for path in options.checkpoint),
        task=options.task,
        text=_TEXT_OUT if options.text is None else _TEXT_IN.format(text=options.text),
        folder=LOCAL_NAME,
        summary=summary,
    )


def _values(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; what is no number, list or the like is text."""
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
