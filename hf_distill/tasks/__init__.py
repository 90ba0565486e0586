"""What differs between tasks: one file per task and a table."""
