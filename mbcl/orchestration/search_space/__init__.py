"""The space file: its schema, its domains, and its expansion to trials. Imports no Ray."""
