"""Adaptive trimming of a host model: sites, decisions, the three modes, objective, costs, storage."""
