"""Shadow LoRAs: the recipe of an adapt run on random halves of its pictures, so that an attack knows what to expect.

Every picture of the run's split is a member of about half of the shadows. What a LoRA looks like that was trained on a
picture, and what one that was not, can so be seen on the very picture; the audited LoRA is then compared with both.
"""

from lorica.shadows.config import ShadowsConfig
from lorica.shadows.found import ForeignShadow, Shadow, find_shadows
from lorica.shadows.run import run

__all__ = ["ForeignShadow", "Shadow", "ShadowsConfig", "find_shadows", "run"]
