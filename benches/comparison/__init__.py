"""A stock Postgres on a branch beside the same Postgres on the disk below, and on other ways to fork it."""
