"""One file an algorithm; none imports another."""
