"""What optimizers claim to compute, in float64 and plain torch: shares no code with the library."""
