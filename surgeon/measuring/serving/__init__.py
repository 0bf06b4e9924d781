"""Whether inference servers read a folder of weights as it is meant."""
