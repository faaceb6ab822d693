"""The space file: schema, domains, and its expansion to trials. No Ray here."""
