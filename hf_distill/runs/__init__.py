"""One file per command, each callable from Python."""
