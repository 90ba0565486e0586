"""The loop: trainer, arguments, accounting, callbacks, resuming."""
