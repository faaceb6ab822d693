"""Files: local folders and URIs behind one interface, who may write there, and NumPy archives."""
