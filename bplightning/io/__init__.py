"""Files, folders and the terminal: reading, writing whole or not at all, progress and silence. No torch."""
