"""The trainings that a verdict needs, and its judgement."""
