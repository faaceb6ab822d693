"""Which trial starts next and which is stopped. No Ray here."""
