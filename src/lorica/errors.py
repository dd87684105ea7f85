"""The exceptions that a user is meant to read."""


class LoricaError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with code 2.

    Args:
        problem: what is wrong, naming the offending file, key or value.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n{remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class Diverged(LoricaError):
    """Training produced a number that is not finite; nothing of it was written."""
