"""The command line: a file per sub-command, each loaded only when it is used."""
