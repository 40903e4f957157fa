"""Tasks: one file each. Samples, collation, loss, prediction and score."""
