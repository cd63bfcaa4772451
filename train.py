"""Trains a scheduler: `python train.py --help`."""

from __future__ import annotations

import sys

from agents.training import main
from llm_env.rivals import usual_rivals
from llm_env.teachers import make_teacher

if __name__ == "__main__":
    sys.exit(main(rivals=usual_rivals, teachers=make_teacher))
