"""Scores of predictions, and the statistics that say how sure they are."""
