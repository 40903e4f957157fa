"""Backbones: one file per VLM family. Each builds the host model and describes it to the trimming engine."""
