"""Commands of `python -m llm_env`, one file each: arguments to calls, calls to tables and files."""
