"""Pictures of the report, as data URIs: drawn by the models, and small copies of exposed members where asked for."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lorica.errors import LoricaError
from lorica.report.run import ReportRun, finite

_PICTURE_SIDE = 384  # longest side of an embedded picture; enough to look at, and a page stays a few megabytes


@dataclass(frozen=True)
class Exposed:
    """A member that an attack would name early."""

    index: int
    fpr: float
    picture: str | None
    """Data URI, where the audit was asked for thumbnails."""


def samples(runs: Sequence[ReportRun]) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """(caption, [(run index, label, data URI)]): pictures of the same caption side by side, in the order first met."""
    rows: dict[tuple[str, int], list[tuple[int, str, str]]] = {}
    for index, run in enumerate(runs):
        met: dict[str, int] = {}
        captions = [*run.captions[: len(run.samples)], *[""] * (len(run.samples) - len(run.captions))]
        for sample, caption in zip(run.samples, captions, strict=True):
            met[caption] = met.get(caption, 0) + 1
            rows.setdefault((caption, met[caption]), []).append((index, run.label, data_uri(sample)))
    return [(caption, pictures) for (caption, _), pictures in rows.items()]


def data_uri(sample: Path | Image.Image) -> str:
    try:
        picture = (Image.open(sample) if isinstance(sample, Path) else sample).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise LoricaError(f"sample picture cannot be read: {sample}: {error}", "Draw it again.") from error
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def exposed(runs: Sequence[ReportRun]) -> list[tuple[int, ReportRun, list[Exposed]]]:
    """(run index, run, members) of the runs that expose any, under the strongest attack on each."""
    found = []
    for index, run in enumerate(runs):
        entries = run.part("exposed").get(str(run.worst))
        members = []
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            place, fpr = (finite(entry.get(key)) for key in ("index", "fpr"))
            if place is not None and fpr is not None:
                file = run.thumbnails.get(int(place))
                members.append(Exposed(int(place), fpr, data_uri(file) if file is not None else None))
        if members:
            found.append((index, run, members))
    return found
