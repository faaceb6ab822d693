"""Configuration: YAML to checked settings, and everything that a configuration can name."""
