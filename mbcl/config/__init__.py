"""Configuration: from YAML to validated settings, and the components that a configuration can name."""
