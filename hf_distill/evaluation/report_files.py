"""What the files of a report are called, for whoever writes, reads or publishes them; nothing heavy is imported for it."""

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
"""For programs, for people, and a verdict's page beside them."""

QUALITY, RELIABILITY, LEARNING, CLASSES = PICTURE_FILES = (
    "figures/quality_against_latency.png",
    "figures/reliability.png",
    "figures/learning_curves.png",
    "figures/gains_by_class.png",
)
"""Every name that a verdict's picture may have; a report has those that it has numbers for."""
