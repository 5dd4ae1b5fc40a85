"""What this machine runs Quartet Compile on, whether it computes the right bits, and how fast."""
