"""The results folder: its layout, who holds it, and how it is put in order."""
