"""Tests of the runner: `python3 -m unittest discover -s perf -t perf`."""
