"""What came out: rows, targets, tables and files."""
