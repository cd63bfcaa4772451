"""`python -m llm_env`."""

from llm_env.cli import main

raise SystemExit(main())
