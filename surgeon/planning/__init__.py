"""From an expression to steps, memory and bytes, from headers alone."""
