"""Folders as those of the package; what several of them use is in `shared`."""
