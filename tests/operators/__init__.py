"""What an operator installs, each tried with the real program it is for."""
