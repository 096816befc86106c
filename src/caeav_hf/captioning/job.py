"""Captioning of a whole data set: adds missing captions in parallel and can be interrupted at any moment."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..constants import MODALITIES
from ..data.caption_file import is_edited
from ..errors import CaeAvError
from ..files import write_json
from .captioner import Captioner
from .errors import CaptionerUnusableError, CaptioningError
from .material import ClipMaterial
from .request import CaptionRequest
from .sources import CaptionClip
from .table import CaptionTable


# Number of clips after which the journal is merged into the Parquet file.
_COMPACT_EVERY = 500
# Reasons of failures that concern the clip rather than the back end.
_CLIP_FAILURES = ("media", "refusal", "empty", "rejected")


@dataclass
class CaptionReport:
    """
    Report of a captioning job.

    Attributes:
        file: The caption file.
        clips: Number of clips of the data set.
        complete: Number of clips with the captions that are asked for, or whose missing caption was removed by hand.
        edited: Number of captions that were written or changed by hand.
        captioned: Number of clips captioned in this job.
        failed: For each failed clip its `file`, and for `"media"` or each modality the `reason` and `message`.
        retries: Number of retries by reason.
        seconds: Duration of the job.
        model, prompt_version, settings: Provenance of the job's captions.
        kept_from_elsewhere: Number of clips with captions of another model, prompt or settings, which were kept.
    """

    file: str
    model: str
    prompt_version: str
    settings: str
    clips: int = 0
    complete: int = 0
    edited: int = 0
    captioned: int = 0
    kept_from_elsewhere: int = 0
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed_by_reason(self) -> dict[str, int]:
        """Number of failures by reason; a clip counts once per failed modality."""
        reasons = Counter(
            item["reason"] for clip in self.failed.values() for item in clip.values() if isinstance(item, dict)
        )
        return dict(sorted(reasons.items()))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the report file."""
        rate = self.captioned / self.seconds if self.seconds else 0.0
        return {
            **{name: value for name, value in vars(self).items() if name != "failed"},
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(rate, 4),
            "failed_by_reason": self.failed_by_reason,
            "failed": dict(sorted(self.failed.items())),
        }


@dataclass
class _Outcome:
    """Captions of a clip, and failures, by modality."""

    clip: CaptionClip
    captions: dict[str, str] = field(default_factory=dict)
    failures: dict[str, CaptioningError] = field(default_factory=dict)


def report_path(captions: str | os.PathLike) -> Path:
    """Return the path of a caption file's report."""
    path = Path(captions)
    return path.with_name(f"{path.stem}.report.json")


def caption_clips(
    clips: Sequence[CaptionClip],
    captioner: Captioner,
    out: str | os.PathLike,
    *,
    modalities: Sequence[str] = MODALITIES,
    renew: bool = False,
    limit: int | None = None,
    max_failures_in_a_row: int = 50,
    show_progress: bool = True,
) -> CaptionReport:
    """
    Add missing captions to a caption file, and write the report `<name>.report.json` beside it.

    A clip that cannot be decoded or captioned is reported and tried again by the next job. A job that is interrupted
    or killed loses only pending captions.

    Args:
        clips: Clips of the data set.
        captioner: The back end.
        out: The Parquet file.
        modalities: Captions to write: `"visual"`, `"audio"`, or both.
        renew: Whether to replace captions of another model, prompt or settings; edited captions are always kept.
        limit: Maximum number of clips to caption in this job.
        max_failures_in_a_row: Number of consecutive clips with failures of the back end after which to stop.
        show_progress: Whether to show a progress bar.

    Returns:
        The report.

    Raises:
        CaptionerUnusableError: The back end rejects every clip, or failed for too many consecutive clips. Captions
            written before are kept.
        CaeAvError: The file cannot be written.
        DataError: It is not a caption file.
    """
    provenance = {
        "model": captioner.model,
        "prompt_version": captioner.settings.prompt_version,
        "settings": captioner.settings.to_json(),
    }
    report = CaptionReport(
        file=str(out),
        model=provenance["model"],
        prompt_version=provenance["prompt_version"],
        settings=provenance["settings"],
        clips=len(clips),
    )
    started, retries_before = time.perf_counter(), captioner.retries.copy()
    with CaptionTable(out) as table:
        wanted = [(c, m) for c in clips if (m := table.missing(c.clip, provenance if renew else None, modalities))]
        try:
            _caption_all(wanted[:limit], captioner, table, provenance, report, max_failures_in_a_row, show_progress)
        finally:
            table.compact()
            report.seconds = time.perf_counter() - started
            report.retries = dict(sorted((captioner.retries - retries_before).items()))
            rows = [table.rows[clip.clip] for clip in clips if clip.clip in table.rows]
            report.complete = sum(not table.missing(clip.clip, modalities=modalities) for clip in clips)
            report.edited = sum(is_edited(row, modality) for row in rows for modality in MODALITIES)
            report.kept_from_elsewhere = sum(
                any(row[name] is not None and row[name] != value for name, value in provenance.items()) for row in rows
            )
            write_json(report_path(out), report.as_dict())
    return report


def _caption_all(
    wanted: Sequence[tuple[CaptionClip, list[str]]],
    captioner: Captioner,
    table: CaptionTable,
    provenance: dict[str, str],
    report: CaptionReport,
    max_failures: int,
    show_progress: bool,
) -> None:
    failures_in_a_row = 0
    with tqdm(total=len(wanted), desc="Captioning", unit="clip", disable=not show_progress) as bar:
        for outcome in _outcomes(wanted, captioner):
            bar.update()
            clip = outcome.clip
            if outcome.captions:
                table.record(clip.clip, clip.file, outcome.captions, provenance)
                report.captioned += 1
                if report.captioned % _COMPACT_EVERY == 0:
                    table.compact()
            if outcome.failures:
                report.failed[clip.clip] = {
                    "file": clip.file,
                    **{
                        what: {"reason": error.reason, "message": error.message}
                        for what, error in outcome.failures.items()
                    },
                }
                bar.set_postfix(failed=len(report.failed))
            if any(error.reason not in _CLIP_FAILURES for error in outcome.failures.values()):
                failures_in_a_row += 1
            else:
                failures_in_a_row = 0
            if failures_in_a_row >= max_failures:
                error = next(iter(outcome.failures.values()))
                raise CaptionerUnusableError(
                    f"{captioner.model}: captioning failed for {failures_in_a_row} clips in a row, the last time with "
                    f"{error}; captions so far are in {report.file}, and the next run continues from there"
                )


def _outcomes(wanted: Sequence[tuple[CaptionClip, list[str]]], captioner: Captioner) -> Iterator[_Outcome]:
    """Yield the outcomes of all clips in order of completion."""
    stop = threading.Event()
    size = captioner.batch_size
    chunks = (wanted[start : start + size] for start in range(0, len(wanted), size))
    pool = ThreadPoolExecutor(captioner.concurrency, thread_name_prefix="captioning")
    try:
        # Queue enough chunks to keep all threads busy, but not all of them, so that the job stops quickly.
        running = {
            pool.submit(_caption_chunk, chunk, captioner, stop) for chunk in islice(chunks, 2 * captioner.concurrency)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_caption_chunk, chunk, captioner, stop) for chunk in islice(chunks, len(done))}
            for future in done:
                yield from future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _caption_chunk(
    chunk: Sequence[tuple[CaptionClip, list[str]]], captioner: Captioner, stop: threading.Event
) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    requests: list[CaptionRequest] = []
    owners: list[tuple[_Outcome, str]] = []
    for clip, modalities in chunk:
        outcomes.append(outcome := _Outcome(clip))
        material = _load(clip, captioner)
        if isinstance(material, CaptioningError):
            outcome.failures["media"] = material
            continue
        for modality in modalities:
            requests.append(CaptionRequest(material, modality, captioner.settings.prompt_version))
            owners.append((outcome, modality))
    if requests and not stop.is_set():
        for (outcome, modality), caption in zip(owners, captioner.caption(requests, stop), strict=True):
            if isinstance(caption, CaptioningError):
                outcome.failures[modality] = caption
            else:
                outcome.captions[modality] = caption
    return outcomes


def _load(clip: CaptionClip, captioner: Captioner) -> ClipMaterial | CaptioningError:
    try:
        return clip.load(captioner.settings)
    except CaeAvError as error:
        return CaptioningError("media", str(error))
    except Exception as error:  # A decoder may fail in any way on a broken file; other clips continue.
        return CaptioningError("media", f"{type(error).__name__}: {error}")
