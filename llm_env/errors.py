"""The errors a user can cause, each with the exit code that the command line gives it. Knows nothing of the rest."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: a wrong setting, file or argument. The message names the place, the value and what is allowed."""

    exit_code = 2


class InputOutputError(UserError):
    """A file or folder could not be read or written."""

    exit_code = 3


class RequirementError(UserError):
    """A requirement that the user stated was missed."""

    exit_code = 4


MAX_REPORTED = 20


def join_problems(problems: list[str]) -> str:
    """Up to 20 problems, one a line, and how many more there are.

    Args:
        problems: messages without the leading ``error: ``, the first one first.
    """
    shown = problems[:MAX_REPORTED]
    if len(problems) > MAX_REPORTED:
        shown.append(f"and {len(problems) - MAX_REPORTED} more problems")
    return "\n".join(shown)
