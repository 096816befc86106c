"""From a file, an address or a stream to frames, samples and time stamps."""
