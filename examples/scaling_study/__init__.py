"""Accuracy against the batch size, for six optimizers whose rates were tuned at the smallest batch only.

``python -m examples.scaling_study`` runs it.
"""
