"""Crash, power loss, full disks and conformance: what the campaign scripts in the folder above are made of."""
