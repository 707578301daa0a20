"""Ranks that raise, hang or are killed, disks that are full: what a run makes of it."""
