"""The 8-bit optimizers' arithmetic in plain torch operations, piece by piece."""
