"""What attacks share that look at the first draws of a picture's stream of (t, eps): nothing of it is asked twice."""

from typing import TYPE_CHECKING, Any, ClassVar

from lorica.audit.queries import ask_error_maps, ask_losses

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class _Stream:
    """Goes before the attack class, whose options have `draws`."""

    options: Any
    kind: ClassVar[str]

    @property
    def queries(self) -> int:
        return self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": self.kind, "draws": self.options.draws}


class StreamLosses(_Stream):
    """Measures {"losses": (N, draws)}."""

    kind = "losses"

    def ask(self, sitting: "Sitting") -> "Ask":
        return ask_losses(sitting, self.options.draws)


class StreamMaps(_Stream):
    """Measures {"maps": (N, draws, C, h, w), "t": (N, draws)}, in the order of t."""

    kind = "error-maps"

    def ask(self, sitting: "Sitting") -> "Ask":
        return ask_error_maps(sitting, self.options.draws)
