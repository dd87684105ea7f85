"""Pictures and their captions or labels, read and checked; splits kept as artefacts; the built-in private set."""

from lorica.data.batches import Augment, Batches, ordered
from lorica.data.cohort import draw_cohort, write_cohort
from lorica.data.label_split import LabelledSplit, load_split, split_labelled
from lorica.data.labelled import LabelledSet, read_labelled
from lorica.data.pictures import Picture, fit, load_rgb, pixels, read_folder
from lorica.data.split import Split, make_split
from lorica.data.split_file import GROUPS

__all__ = [
    "GROUPS", "Augment", "Batches", "LabelledSet", "LabelledSplit", "Picture", "Split", "draw_cohort", "fit",
    "load_rgb", "load_split", "make_split", "ordered", "pixels", "read_folder", "read_labelled", "split_labelled",
    "write_cohort",
]  # fmt: skip
