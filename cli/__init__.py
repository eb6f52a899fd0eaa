"""The `fedhelp` command, one file a command."""
