"""Storage: local folders and URIs behind one interface, write ownership, and NumPy archives."""
