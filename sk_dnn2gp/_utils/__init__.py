"""What every room may use: linear algebra, memory, randomness, threads."""
