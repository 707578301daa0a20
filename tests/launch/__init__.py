"""Launchers: torchrun on several nodes, SLURM, signals."""
