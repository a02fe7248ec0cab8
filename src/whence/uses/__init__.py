"""What scores and data are used for: label errors, duplicates."""
