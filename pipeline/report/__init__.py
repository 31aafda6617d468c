"""A run as one HTML file that opens from disk."""
