"""The page, built with Gradio."""

import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import CaeAvError
from ..files import scratch_folder, writing
from ..media.guard import guarded_decoding
from ..media.remote import is_address
from .prediction import (
    OWN_SOUND,
    Limits,
    Model,
    OpenClip,
    Shown,
    Sound,
    ToyClips,
    ToyModel,
    check_file,
    compare,
    find_models,
    predict,
    write_files,
)


_HERE = Path(__file__).parent
_FOLDER_VARIABLE, _ANALYTICS_VARIABLE = "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"
# Seconds between looks for files of visitors, and after which these are removed.
_DELETE_EVERY, _DELETE_AFTER = 300, 3600
# Visitors who wait at a time; one is served.
_MOST_WAITING = 20
# Visitors whose state Gradio keeps, some 100 kB each; it never forgets one that has left.
_MOST_VISITORS = 100
_TOY_FOLDER = "toy"
_SOUNDS = (("its own", "own"), ("muted", "muted"), ("delayed", "delayed"), ("of another file", "swapped"))
_CAPTIONS = (("the same", "same"), ("left out", "none"), ("edited", "edited"))
_LATEST = 5.0
# Components that say what is changed.
_NUM_CHANGES = 6
_DEFAULT_LIMITS = Limits()


@contextmanager
def serve_page(
    models: Sequence[str] = (),
    *,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: Any = None,
    limits: Limits = _DEFAULT_LIMITS,
    **launching: Any,
) -> Iterator[Any]:
    """
    Serve the page while the block runs. Clips are read in workers with limits of memory and time, see `media.guard`.

    Args:
        models, host, port, share, device, limits: See [`launch_page`].
        launching: Further arguments of `gradio.Blocks.launch`.

    Returns:
        The `gradio.Blocks`, whose `local_url` is the page's address.
    """
    with scratch_folder("caeav-app-") as folder:
        yield from _serve(folder, models, host, port, share, device, limits, launching)


def _serve(
    folder: Path,
    models: Sequence[str],
    host: str | None,
    port: int | None,
    share: bool,
    device: Any,
    limits: Limits,
    launching: Mapping[str, Any],
) -> Iterator[Any]:
    before = os.environ.get(_FOLDER_VARIABLE)
    # Read when the page is built: all files of visitors are below this folder.
    os.environ[_FOLDER_VARIABLE] = str(folder)
    page: Any = None
    try:
        page = build_page(models, device=device, limits=limits)
        with guarded_decoding():
            try:
                page.launch(
                    server_name=host,
                    server_port=port,
                    share=share,
                    max_file_size=round(limits.max_megabytes * 1e6),
                    state_session_capacity=_MOST_VISITORS,
                    prevent_thread_lock=True,
                    ssr_mode=False,
                    run_history=False,
                    footer_links=[],
                    theme=_theme(),
                    css_paths=[_HERE / "page.css"],
                    head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
                    **launching,
                )
            except OSError as error:
                reason = f"cannot be listened at; choose another one with --port: {error}"
                raise CaeAvError(f"port {port}: {reason}") from error
            remover = _Remover(folder)
            remover.start()
            try:
                yield page
            finally:
                remover.stop()
    finally:
        if page is not None:
            page.close(verbose=False)
        if before is None:
            del os.environ[_FOLDER_VARIABLE]
        else:
            os.environ[_FOLDER_VARIABLE] = before


def launch_page(
    models: Sequence[str] = (),
    *,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: Any = None,
    limits: Limits = _DEFAULT_LIMITS,
    open_browser: bool = False,
) -> None:
    """
    Serve the page until Ctrl-C or SIGTERM stops it. Files of visitors are removed after an hour, and at the end.

    Args:
        models: Model folders or Hub ids; without any, untrained toy models.
        host: Address to listen at; `None` for that in the environment variable `GRADIO_SERVER_NAME`, as on Spaces.
        port: Port; by default the first free one from 7860 on.
        share: Whether to open a public address at gradio.live.
        device: As for `transformers.pipeline`.
        limits: Limits of size and length.
        open_browser: Whether to open a browser.

    Raises:
        CaeAvError: Gradio is not installed, a model does not exist, or the port is taken.
    """
    options: dict[str, Any] = {"host": host, "port": port, "share": share, "device": device, "limits": limits}
    with _stopped_by_sigterm(), serve_page(models, **options, inbrowser=open_browser, quiet=True) as page:
        addresses = " and ".join(filter(None, [page.local_url, page.share_url]))
        print(f"caeav app: {addresses}; Ctrl-C stops it", flush=True)
        page.block_thread()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that files of visitors are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_page(models: Sequence[str] = (), *, device: Any = None, limits: Limits = _DEFAULT_LIMITS) -> Any:
    """
    Build the page.

    Args:
        models, device, limits: See [`launch_page`].

    Returns:
        The `gradio.Blocks`.

    Raises:
        CaeAvError: Gradio is not installed, or a model does not exist or cannot be loaded.
    """
    if find_spec("gradio") is None:
        raise CaeAvError('the page needs Gradio: pip install "caeav-hf[app]"')
    return _Page(find_models(models, device), limits).blocks


def _theme() -> Any:
    import gradio as gr

    # Fonts of the system: nothing is loaded from elsewhere.
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


class _Remover(threading.Thread):
    """
    Removes files of visitors that have not changed for an hour, also those of uploads that broke off. The hour is
    counted by a clock that does not jump.

    Args:
        folder: The folder of the page; what is there already stays, and so do the toy clips.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(name="remover", daemon=True)
        self.folder = folder
        self.kept = {_TOY_FOLDER, *os.listdir(folder)}
        # When each file or folder last changed, by its own time, and when that was first seen.
        self._seen: dict[str, tuple[int, float]] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_DELETE_EVERY):
            self.remove(time.monotonic())

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()

    def remove(self, now: float) -> None:
        """Remove what is too old at a time in seconds."""
        seen: dict[str, tuple[int, float]] = {}
        for name in set(os.listdir(self.folder)) - self.kept:
            path = self.folder / name
            try:
                changed = max(one.lstat().st_mtime_ns for one in (path, *path.rglob("*")))
            except OSError:  # it is being removed or written
                continue
            before = self._seen.get(name)
            seen[name] = before if before is not None and before[0] == changed else (changed, now)
            if now - seen[name][1] < _DELETE_AFTER:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
        self._seen = seen


class _Page:
    """The components of the page and what happens when they are used. All that a visitor has is in the components."""

    def __init__(self, models: Mapping[str, Model], limits: Limits) -> None:
        os.environ.setdefault(_ANALYTICS_VARIABLE, "False")
        import gradio as gr
        from gradio.utils import get_upload_folder

        self.gr, self.models, self.limits = gr, models, limits
        self.folder = Path(get_upload_folder())
        self.toy_clips = ToyClips(self.folder / _TOY_FOLDER)
        self.first = next(iter(models.values()))
        self.blocks = gr.Blocks(
            title="caeav",
            analytics_enabled=False,
            fill_width=True,
        )
        with self.blocks:
            self._build()
        self.blocks.queue(max_size=_MOST_WAITING)

    def _build(self) -> None:
        gr = self.gr
        self._html("<h1>Sound and picture</h1>")
        # The folder of the visitor's last results and whether they compare, and the number of the next toy clip.
        self.results = gr.State(None)
        self.next_clip = gr.State(0)
        with gr.Row(elem_classes="caeav-page"):
            with gr.Column(scale=2, min_width=300):
                self._build_inputs()
            with gr.Column(scale=5, min_width=300):
                self.alert = self._html(_hint("Choose a clip, then predict."), elem_id="caeav-alert")
                self.difference = self._html(elem_id="caeav-difference", visible=False)
                with gr.Row():
                    self.one = _Result(self, "one", "As given")
                    self.other = _Result(self, "other", "Changed")
        self._connect()

    def _build_inputs(self) -> None:
        gr = self.gr
        titles = list(self.models)
        self.model = gr.Dropdown(titles, value=titles[0], label="Model", interactive=True, elem_id="caeav-model")
        self.note = self._html(elem_id="caeav-note", visible=False)
        self.clip = gr.Video(
            sources=["upload", "webcam"],
            label="Clip",
            include_audio=True,
            webcam_options=gr.WebcamOptions(mirror=False),
            elem_id="caeav-clip",
        )
        _uploads_only(self.clip)
        has_toys = any(isinstance(model, ToyModel) for model in self.models.values())
        self.toy_clip = gr.Button("Use a toy clip", size="sm", visible=has_toys)
        self.controls = {
            "threshold": gr.Slider(0.05, 0.95, value=0.5, step=0.01, label="Threshold"),
            "video_threshold": gr.Slider(0.05, 0.95, value=0.5, step=0.01, label="Threshold of the whole clip"),
            "question": gr.Textbox(label="Questions, one in each line", lines=2),
            "candidate_labels": gr.Textbox(
                label="Labels, separated by commas", placeholder="the classes that the model was trained on", lines=2
            ),
        }
        # What is known of the first model before it is loaded; `choose` completes it.
        task = self.first.task
        for name, control in self.controls.items():
            control.visible = name in task.view_class.controls
            control.value = task.view_class.defaults.get(name, control.value)
        self.seen = gr.Textbox(label="Caption: what is seen (optional)", lines=2, visible="visual" in task.captions)
        self.heard = gr.Textbox(label="Caption: what is heard (optional)", lines=2, visible="audio" in task.captions)
        self.predict = gr.Button("Predict", variant="primary", elem_id="caeav-predict")
        with gr.Group(elem_classes="caeav-change"):
            self._html("<h2>Compare with a change</h2>", padding=True)
            self.sound = gr.Radio(list(_SOUNDS), value="own", label="Sound")
            self.delay = gr.Slider(
                -_LATEST, _LATEST, value=1.0, step=0.1, label="Delay of the sound in seconds", visible=False
            )
            self.other_sound = gr.File(
                label="Video or audio file with the other sound",
                file_types=["video", "audio"],
                type="filepath",
                visible=False,
                height=140,
                elem_id="caeav-other-sound",
            )
            _uploads_only(self.other_sound)
            self.captions = gr.Radio(list(_CAPTIONS), value="same", label="Captions")
            self.other_seen = gr.Textbox(label="Edited caption: what is seen", lines=2, visible=False)
            self.other_heard = gr.Textbox(label="Edited caption: what is heard", lines=2, visible=False)
            self.compare = gr.Button("Compare", variant="secondary", elem_id="caeav-compare")

    def _html(self, value: str = "", **options: Any) -> Any:
        """Return a component for HTML that only `page.css` styles."""
        return self.gr.HTML(value, apply_default_css=False, elem_classes="caeav-html", **options)

    def _said(self, html: str) -> Any:
        """Return an update of a component for HTML, which is hidden if there is nothing to say."""
        return self.gr.update(visible=bool(html), value=html)

    def _connect(self) -> None:
        gr = self.gr
        depends = [self.note, *self.controls.values(), self.seen, self.heard, self.captions]
        # The endpoints are the page's own.
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on(
            [self.blocks.load, self.model.change], self.choose, [self.model, *self.controls.values()], depends, **quiet
        )
        self.toy_clip.click(
            self.use_toy_clip,
            [self.model, self.next_clip],
            [self.clip, self.seen, self.heard, self.next_clip],
            api_visibility="private",
        )
        self.sound.change(
            lambda kind: (gr.update(visible=kind == "delayed"), gr.update(visible=kind == "swapped")),
            [self.sound],
            [self.delay, self.other_sound],
            **quiet,
        )
        self.captions.change(
            self.edit_captions,
            [self.model, self.captions, self.seen, self.heard],
            [self.other_seen, self.other_heard],
            **quiet,
        )
        given = [self.model, self.clip, self.seen, self.heard, *self.controls.values(), self.results]
        change = [self.sound, self.delay, self.other_sound, self.captions, self.other_seen, self.other_heard]
        outputs = [self.alert, self.difference, *self.one.outputs, *self.other.outputs, self.results]
        # One model runs at a time, whoever asks.
        running: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress_on": [self.alert],
        }
        self.predict.click(self.show_one, given, outputs, **running)
        self.compare.click(self.show_both, [*given, *change], outputs, **running)
        for name in ("threshold", "video_threshold"):
            self.controls[name].release(self.show_again, [*given, *change], outputs, **running)

    def choose(self, title: str, *values: Any) -> list[Any]:
        """Show what belongs to a model."""
        gr, model = self.gr, self.models[title]
        try:
            view = model.view
        except CaeAvError as error:
            return [self._said(_alert(str(error))), *[gr.update()] * (len(self.controls) + 3)]
        controls = [
            # Once there is a value, it is the visitor's.
            gr.update(
                visible=name in view.controls,
                **({"value": view.defaults[name]} if name in view.defaults and not value else {}),
            )
            for name, value in zip(self.controls, values, strict=True)
        ]
        return [
            self._said(_note(model.note)),
            *controls,
            gr.update(visible="visual" in view.captions),
            gr.update(visible="audio" in view.captions),
            gr.update(visible=bool(view.captions), value="same"),
        ]

    def use_toy_clip(self, title: str, number: int) -> list[Any]:
        """Put the next toy clip into the page, with its captions."""
        clip, captions = self.toy_clips.get(self.models[title].task.name, number)
        return [str(clip), captions.get("visual", ""), captions.get("audio", ""), number + 1]

    def edit_captions(self, title: str, kind: str, seen: str, heard: str) -> list[Any]:
        """Offer the given captions for editing."""
        view = self.models[title].view
        texts = {"visual": seen, "audio": heard}
        return [
            self.gr.update(visible=kind == "edited" and side in view.captions, value=text)
            for side, text in texts.items()
        ]

    def show_one(self, *given: Any) -> Iterator[list[Any]]:
        """Show the prediction for the clip as it is."""
        yield from self._show(given, None)

    def show_both(self, *values: Any) -> Iterator[list[Any]]:
        """Show the prediction beside that for the changed clip."""
        yield from self._show(values[:-_NUM_CHANGES], values[-_NUM_CHANGES:])

    def show_again(self, *values: Any) -> Iterator[list[Any]]:
        """Show what is shown once more, with another threshold."""
        before = values[-_NUM_CHANGES - 1]
        if before is None:
            yield [self.gr.skip()] * (3 + len(self.one.outputs) + len(self.other.outputs))
        else:
            yield from self.show_both(*values) if before["compares"] else self.show_one(*values[:-_NUM_CHANGES])

    def _show(self, given: Sequence[Any], change: Sequence[Any] | None) -> Iterator[list[Any]]:
        title, path, seen, heard, *rest = given
        controls, before = dict(zip(self.controls, rest[:-1], strict=True)), rest[-1]
        model, captions = self.models[title], {"visual": seen, "audio": heard}
        with writing("results"):
            folder = Path(tempfile.mkdtemp(dir=self.folder))
        after = {"folder": str(folder), "compares": change is not None}
        hidden = self.gr.update(visible=False, value="")
        try:
            opened = OpenClip.read(path, model, self.limits)
            one = predict(model, opened, folder=folder, video=self.one.video_id, captions=captions, values=controls)
            shown = self.one.show(one, folder, f"{model.title}{', untrained' if isinstance(model, ToyModel) else ''}")
            if change is None:
                yield [self._said(""), hidden, *shown, *self.other.hide(), after]
                return
            yield [
                self._said(_hint("Predicting the changed clip \N{HORIZONTAL ELLIPSIS}")),
                hidden,
                *shown,
                *self.other.hide(),
                after,
            ]
            sound, changed = self._changed(captions, change)
            other = predict(
                *(model, opened),
                folder=folder,
                video=self.other.video_id,
                captions=changed,
                sound=sound,
                values=controls,
            )
            text = ", ".join([sound.text, _captions_text(change[3], model)])
            table = self.gr.update(visible=True, value=compare(one.summary, other.summary))
            yield [self._said(""), table, *shown, *self.other.show(other, folder, text), after]
        except CaeAvError as error:
            yield [self._said(_alert(str(error))), hidden, *self.one.hide(), *self.other.hide(), after]
        finally:
            _remove(before)

    def _changed(self, captions: Mapping[str, str], change: Sequence[Any]) -> tuple[Sound, Mapping[str, str]]:
        kind, delay, other, captions_kind, seen, heard = change
        if other is not None:
            check_file(other, self.limits)
        if kind == "own" and captions_kind == "same":
            raise CaeAvError("nothing is changed yet; choose another sound, or other captions, to compare with")
        sound = OWN_SOUND if kind == "own" else Sound(kind, delay if kind == "delayed" else 0.0, other)
        if captions_kind == "same":
            return sound, captions
        return sound, {} if captions_kind == "none" else {"visual": seen, "audio": heard}


class _Result:
    """The components that show one prediction, hidden until there is one."""

    def __init__(self, page: _Page, name: str, heading: str) -> None:
        self.gr, self.heading, self.video_id = page.gr, heading, f"caeav-video-{name}"
        with self.gr.Column(min_width=300, visible=False) as self.column:
            self.title = page._html(elem_id=f"caeav-title-{name}")
            self.video = self.gr.Video(
                label=heading, interactive=False, elem_id=self.video_id, buttons=["download"], height=360
            )
            self.html = page._html(elem_id=f"caeav-result-{name}")
            self.files = self.gr.File(
                label="Downloads", file_count="multiple", interactive=False, elem_id=f"caeav-files-{name}"
            )

    @property
    def outputs(self) -> list[Any]:
        return [self.column, self.title, self.video, self.html, self.files]

    def show(self, shown: Shown, folder: Path, text: str) -> list[Any]:
        """Return the updates that show a prediction."""
        files = [str(path) for path in write_files(shown, folder, self.heading)]
        title = f"<h2>{escape(self.heading)}</h2><p>{escape(text)}</p>"
        return [self.gr.update(visible=True), title, str(shown.video), shown.html, files]

    def hide(self) -> list[Any]:
        """Return the updates that show nothing."""
        return [self.gr.update(visible=False), "", None, "", None]


def _uploads_only(component: Any) -> None:
    """Make a component refuse addresses, which Gradio would fetch for a visitor, of any size."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(place: Any) -> Any:
        if place is not None and is_address(str(place)):
            raise CaeAvError("an address was sent; expected an uploaded file")
        return await move(place)

    component.async_move_resource_to_block_cache = move_upload


def _captions_text(kind: str, model: Model) -> str:
    if not model.view.captions:
        return "no captions"
    return {"same": "the same captions", "none": "no captions", "edited": "edited captions"}[kind]


def _alert(message: str) -> str:
    return f'<div class="caeav-alert" role="alert">{escape(message)}</div>'


def _note(text: str) -> str:
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="caeav-note" role="note">{code}</p>' if text else ""


def _hint(text: str) -> str:
    return f'<p class="caeav-hint" role="status">{escape(text)}</p>'


def _remove(results: Mapping[str, Any] | None) -> None:
    """Remove the folder of a visitor's results."""
    if results is not None:
        shutil.rmtree(results["folder"], ignore_errors=True)
