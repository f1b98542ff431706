"""Label distributions on disk and in memory."""
