"""Which captions the model is asked with: the pictures' own, none, or one text for all of them.

Whoever audits a LoRA from elsewhere may have the pictures and not what they were captioned with. Queries about the
picture still work with another caption, if less well; attacks on what a caption does (`Attack.needs_caption`) do not.
"""

from typing import Any

from lorica.data import Split
from lorica.data.pictures import listed
from lorica.errors import LoricaError

FILE, NONE = "file", "none"


def captioned(split: Split, captions: str) -> Split:
    """The split with the captions that the audit asks with.

    Args:
        split: with the pictures' own captions, "" where there is none.
        captions: `FILE`, `NONE`, or the text that stands for every caption.

    Raises:
        LoricaError: the pictures' own are wanted and some have none.
    """
    if captions != FILE:
        return split.with_caption("" if captions == NONE else captions)
    bare = sorted(picture.name for picture in split.members + split.nonmembers if not picture.caption)
    if bare:
        raise LoricaError(
            f"{len(bare)} of {len(split.members + split.nonmembers)} pictures have no caption:\n{listed(bare)}",
            "Give each the caption that it was trained with (a .txt file of the same name, or a line in "
            'metadata.jsonl). If these are not known: --captions "TEXT" with what the LoRA is prompted with, such as '
            "its trigger word, or --captions none for the empty caption.",
        )
    return split


def described(captions: str) -> dict[str, Any]:
    """The entry of audit.json: {"source": "file", "none" or "constant", "used": what a reader is told}."""
    if captions == FILE:
        return {"source": FILE, "used": "each picture's own"}
    if captions == NONE:
        return {"source": NONE, "used": "none: the empty caption for every picture"}
    return {"source": "constant", "used": f'the same for every picture: "{captions}"'}
