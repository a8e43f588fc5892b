"""What a long command needs besides its work: folder, files, progress, processes."""
