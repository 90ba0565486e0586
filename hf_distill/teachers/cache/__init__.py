"""The outputs of teachers, kept: each row once per teacher, ever, and read back by content."""
