"""List the images of a data set on a disk: which files, which classes, which splits."""
