"""Readers of the official data set formats and of own data, image decoding, and the embedded scenes.

A module of this package with an ``Options`` class is a data plug-in that recipes name (``task.data.name``).
It has

- ``TASKS``: the forms (see :mod:`smarttrim_cli.forms`) that it has data for;
- ``read(options, task, split, *, labelled, log) -> list[Sample]``: the samples of a split, or of several
  (``train+val``); with ``labelled``, a split without annotations is an error;
- ``splits(options, task) -> list[str]``: names of the splits that are there.
"""
