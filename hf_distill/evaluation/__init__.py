"""Numbers with their certainty."""
