"""What leaves the machine: card, files, push, export."""
