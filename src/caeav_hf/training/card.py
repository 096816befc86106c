"""Model cards of runs: model, data, recipe and scores, in text and as metadata of the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import CaeAvError, printable
from ..files import write_text
from ..task import Task, get_task
from .recipe import Recipe
from .state import LoopState


TEMPLATES = Path(__file__).resolve().parents[1] / "model_cards"

# Placeholder for the model's name until it is uploaded.
LOCAL_NAME = "path/to/this/folder"
# Values of an evaluation that are not scores.
_COUNTS = ("clips", "dropped_clips")
_PATHS = ("model", "vision_tower", "audio_tower", "text_tower", "region_tower", "data")
_SCORES = re.compile(r"(?<=<!-- scores -->\n).*?(?=<!-- /scores -->)", flags=re.DOTALL)


class RunCard:
    """
    Writes the card of the best checkpoint of a run.

    Args:
        model: The `CaeAvFor...` model, before it is sharded.
        environment: Versions and devices, see `run_folder.environment`.
        best_metric: Name of the metric that selects the best checkpoint.
    """

    def __init__(self, model: Any, recipe: Recipe, environment: Mapping[str, Any], best_metric: str) -> None:
        self.config, self.model_class = model.config, type(model).__name__
        self.method = model.method_names()
        self.trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.frozen = sum(parameter.numel() for parameter in model.parameters()) - self.trained
        self.recipe, self.environment, self.best_metric = recipe, environment, best_metric

    def write(self, folder: Path, state: LoopState) -> None:
        """Write `README.md` into the folder of the best checkpoint."""
        value = state.best_value
        record = next(r for r in reversed(state.history) if r[f"eval/{self.best_metric}"] == value)
        write_text(folder / "README.md", str(self.card(record)))

    def card(self, record: Mapping[str, Any]) -> ModelCard:
        """Build the card of a checkpoint from the record of its evaluation in the history."""
        recipe, config = self.recipe, self.config
        task = get_task(recipe.task)
        metrics = {key.removeprefix("eval/"): value for key, value in record.items() if key.startswith("eval/")}
        name = Path(recipe.output_dir or recipe.task).resolve().name
        sources = config.tower_sources or {}
        towers = {kind: {**source, "name": _shown(source["name"])} for kind, source in sorted(sources.items())}
        data = ModelCardData(
            library_name="caeav-hf",
            pipeline_tag=task.card.hub_task,
            tags=["audio-visual", config.interaction.replace("_", "-"), task.pipeline_name or task.name],
            base_model=[repo for source in towers.values() if (repo := _repository(source))] or None,
            model_name=name,
            eval_results=eval_results(recipe, recipe.eval_split, metrics),
        )
        reads_captions = config.reads_captions and task.card.reads_captions
        card = ModelCard.from_template(
            data,
            template_path=str(TEMPLATES / "trained_model.md"),
            title=name,
            model_class=self.model_class,
            task_name=task.card.title,
            metric_note=task.card.metric_note,
            knowledge=task.card.knowledge,
            method=self.method["title"],
            reference=self.method["reference"],
            reads_captions=reads_captions,
            caption_note=task.card.caption_note,
            formulation=self.method["formulation"],
            data_name=_plain(_shown(recipe.data)),
            usage=_usage(task, self.model_class, reads_captions),
            trained=f"{self.trained:,}",
            frozen=f"{self.frozen:,}",
            towers=towers,
            lora=config.lora,
            class_names=None if task.class_column is None else list(map(_plain, config.id2label.values())),
            steps=record["step"],
            epochs=record["epoch"],
            environment=self.environment,
            recipe=_recipe_text(recipe),
            num_frames=config.num_frames,
            segment_seconds=config.segment_seconds,
        )
        return _with_table(card)


def eval_results(recipe: Recipe, split: str, metrics: Mapping[str, float]) -> list[EvalResult]:
    """Return the scores of a split as entries of the model-index."""
    card = get_task(recipe.task).card
    name = _shown(recipe.data)
    return [
        EvalResult(
            task_type=card.hub_task,
            task_name=card.title,
            dataset_type=re.sub(r"[^\w./-]+", "-", name),
            dataset_name=name,
            dataset_split=split,
            metric_type=re.sub(r"\W+", "_", metric).lower(),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in metrics.items()
        if metric not in _COUNTS
    ]


def add_scores(folder: str | Path, results: list[EvalResult]) -> None:
    """
    Add scores to the card of a model folder, replacing those of the same data set, split and metric.

    Raises:
        CaeAvError: There is no card written by a run.
    """
    path = Path(folder) / "README.md"
    try:
        card = ModelCard.load(path)
        if not _SCORES.search(card.content):
            raise CaeAvError(f"{path}: expected the model card of a run, with its section for scores")
        new, data = {_identity(result) for result in results}, cast(ModelCardData, card.data)
        data.eval_results = [r for r in data.eval_results or [] if _identity(r) not in new] + results
        write_text(path, str(_with_table(card)))
    except (OSError, ValueError) as error:
        if isinstance(error, CaeAvError):
            raise
        raise CaeAvError(f"{path}: cannot be read as a model card: {error}") from error


def space_files(model_id: str, title: str, version: str, task: Task) -> dict[str, str]:
    """Return the files of a Space that shows the page of `caeav app` for a model of a task, by name."""
    values = {"model_id": model_id, "title": title, "version": version, "task": task.card.title}
    files = {}
    for path in sorted((TEMPLATES / "space").iterdir()):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for name, value in values.items():
                # Plain substitution: these names need no escaping in Python strings or YAML.
                text = text.replace(f"{{{{ {name} }}}}", value)
            files[path.name] = text
    return files


def _with_table(card: ModelCard) -> ModelCard:
    lines = ["| data | split | metric | |", "|---|---|---|---:|"]
    lines += [
        f"| {_plain(r.dataset_name)} | {r.dataset_split} | {r.metric_name} | {_number(r.metric_value)} |"
        for r in cast(ModelCardData, card.data).eval_results or []
    ]
    card.content = _SCORES.sub(lambda _: "\n".join(lines) + "\n", card.content)
    return card


def _identity(result: EvalResult) -> tuple[Any, ...]:
    return result.dataset_name, result.dataset_split, result.metric_name


def _plain(text: str) -> str:
    """Return a name as Markdown that shows it in one line, without markup, links and cells of its own."""
    return re.sub(r"([\\<|`\[\]])", r"\\\1", printable(" ".join(text.split())))


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _shown(place: str | None) -> str:
    """Return the last part of a local path, which should not be published whole; other names unchanged."""
    return Path(place).resolve().name if place and Path(place).exists() else str(place)


def _repository(source: Mapping[str, Any]) -> str | None:
    name = source["name"].removeprefix("hf-hub:")
    return name if source["revision"] and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _recipe_text(recipe: Recipe) -> str:
    values = {name: value for name, value in recipe.to_dict().items() if name not in ("output_dir", "cache_dir")}
    values |= {name: _shown(values[name]) for name in _PATHS if values[name] is not None}
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def _usage(task: Task, model_class: str, reads_captions: bool) -> str:
    if task.pipeline_name is None:
        return f'model = {model_class}.from_pretrained("{LOCAL_NAME}")'
    make = f'run = pipeline("{task.pipeline_name}", model="{LOCAL_NAME}")'
    captions = f", {task.card.captions}" if reads_captions else ""
    return f"{make}\nresult = run({task.card.example}{captions})"
