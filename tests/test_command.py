"""How commands end: exit codes and what is said."""

from __future__ import annotations

import os
import signal

import pytest

from llm_env.command import exit_code, output_console


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_callback_swallowed_is_a_bug_of_ours(number, code, capsys):
    def run():
        try:
            os.kill(os.getpid(), number)
        except BaseException:  # as a callback of compiled code does
            pass
        raise RuntimeError("no compiled object yet")

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert exit_code(run) == code
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert capsys.readouterr().err.startswith("error: ")


def test_brackets_in_a_name_are_taken_for_markup(capsys):
    output_console().print("results/[red]/x[/b] and agent:[bold]")
    assert capsys.readouterr().out == "results/[red]/x[/b] and agent:[bold]\n"
