"""Views of images: what is drawn for each, and the transforms."""
