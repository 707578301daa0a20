"""What the parts are worth on a small BERT: runs beside each other, their curves and their table."""
