"""One file a fitter; dropping a file here registers it."""
