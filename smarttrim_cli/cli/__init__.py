"""The command line: one file per subcommand. Torch, pydantic and yaml are imported inside functions only."""
