"""Three teachers, one student, one table: offline."""
