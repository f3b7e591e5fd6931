"""Starting the commands on many machines. For now, run `inference/` directly."""
