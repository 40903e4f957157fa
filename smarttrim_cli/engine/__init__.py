"""What the subcommands do, as plain Python functions that need no command line."""
