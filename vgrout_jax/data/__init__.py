"""Data of the package and the scripts that write it."""
