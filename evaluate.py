"""Compares agents with baselines on identical seeded workloads: `python evaluate.py --help`."""

from __future__ import annotations

import sys

from llm_env.evaluation import main

if __name__ == "__main__":
    sys.exit(main())
