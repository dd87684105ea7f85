"""Contact sheets: many pictures on one."""

import math
from collections.abc import Sequence

from PIL import Image

GAP = 2  # pixels between pictures


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay pictures out in rows, left to right and top to bottom, on white.

    Every cell has the size of the largest picture; smaller ones are centred in theirs.

    Args:
        images: at least one.
        columns: pictures per row; None makes as many columns as rows, or one more.

    Raises:
        ValueError: no pictures, or no columns.
    """
    if not images or (columns is not None and columns < 1):
        raise ValueError(f"{len(images)} pictures in {columns} columns make no sheet")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = -(-len(images) // columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = column * (width + GAP) + (width - image.width) // 2
        top = row * (height + GAP) + (height - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet
