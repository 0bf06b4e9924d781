"""Where tensors are: checkpoints, adapters and their headers, in folders, files and on the Hub."""
