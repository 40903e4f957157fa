"""Trimmers: small modules that score tokens or heads. One file each; baselines are trimmers too."""
