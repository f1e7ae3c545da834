"""Videos: files and folders in, masks and overlays out, runs that survive being killed."""
