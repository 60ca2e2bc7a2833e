"""Suites that others wrote, run on a branch and on the host, and judged by the difference."""
