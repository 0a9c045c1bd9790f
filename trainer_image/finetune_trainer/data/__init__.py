"""From a file of conversations to packed, masked rows on disk."""
