"""What is done to the program to see whether it holds; each trial runs in a process of its own."""
