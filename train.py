"""Trains a scheduler: `python train.py --help`."""

from __future__ import annotations

import sys
from functools import partial

from agents.training import main
from llm_env.rivals import RIVALS, rival_attainment

if __name__ == "__main__":
    sys.exit(main(rivals=partial(rival_attainment, RIVALS)))
