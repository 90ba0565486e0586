"""What a teacher says, live or stored: whoever asks cannot tell."""
