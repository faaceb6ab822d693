"""Registry of data sets, and readers of their official files."""
