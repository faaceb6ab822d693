"""Plans made outside training: ``mbcl plan``."""
