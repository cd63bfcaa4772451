"""How every command of the package ends: one `error: ...` for what a user did, and an exit code. Knows the errors only.

Exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 4 a stated requirement was missed, 130 and 143
stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm_env.errors import InputOutputError, UserError


class Terminated(BaseException):
    """SIGTERM: unfinished files are removed on the way out."""


WIDTH = 100  # columns of printed tables
_stopped_by: list[int] = []


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `exit_code`: rich would exit with 1, our code for a bug


@contextmanager
def progress_bar(word: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while something goes on, nothing where that is no terminal. Tell it (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def output_console() -> Console:
    """Standard output for tables: at most WIDTH columns, plain text where it is no terminal.

    What is in brackets is printed as it is: names of folders may have them.
    """
    console = _Console(highlight=False, markup=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    return console


def exit_code(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code; errors go to stderr, a traceback only for a bug."""
    _stopped_by.clear()
    with suppress(AttributeError, OSError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[attr-defined]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)  # also where a parent had it ignored
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence_stdout()
        return 0
    except OSError as error:
        _silence_stdout()
        return _fail(str(error), InputOutputError.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Terminated:
        return _fail("terminated", 143)
    except SystemExit as end:  # --help, or wrong usage that the argument parser has explained
        return end.code if isinstance(end.code, int) else 0
    except Exception:
        if _stopped_by:  # the signal was lost in a callback of the compiler, which then failed
            return _fail("interrupted", 130) if _stopped_by[-1] == signal.SIGINT else _fail("terminated", 143)
        traceback.print_exc()
        return 1


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"error: {line}\n")
    return code


def _stop(number: int, _: Any) -> NoReturn:
    _stopped_by.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def check_stopped() -> None:
    """Raises what a signal raised before, in case that was lost in a callback of compiled code. For long loops."""
    if _stopped_by:
        _stop(_stopped_by[-1], None)


def _silence_stdout() -> None:
    """What is left in the buffer must not raise again when Python exits."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
