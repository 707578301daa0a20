"""How things are measured; knows nothing of who takes part."""
