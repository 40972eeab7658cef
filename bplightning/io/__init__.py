"""Files, folders and the terminal: reading, writing whole or not at all, and telling how long work takes. No torch."""
