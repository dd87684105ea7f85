"""Captioned pictures: folders read and checked, splits into members and non-members, the built-in private set."""

from lorica.data.cohort import draw_cohort, write_cohort
from lorica.data.pictures import Picture, fit, load_rgb, pixels, read_folder
from lorica.data.split import Split, make_split
from lorica.data.split_file import GROUPS

__all__ = [
    "GROUPS",
    "Picture",
    "Split",
    "draw_cohort",
    "fit",
    "load_rgb",
    "make_split",
    "pixels",
    "read_folder",
    "write_cohort",
]
