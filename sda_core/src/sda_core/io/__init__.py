"""Reading and writing: files, labelled arrays, ensembles on disk, progress, interruption."""
