"""Ranks that talk beside the process group."""
