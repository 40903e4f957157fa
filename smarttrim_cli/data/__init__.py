"""Readers of the official data set formats, image decoding, and the embedded synthetic scenes.

A module of this package with an ``Options`` class is a data plug-in that recipes name (``task.data.name``);
it offers ``locate(options, log) -> Path``, the folder that holds the data in an official layout.
"""
