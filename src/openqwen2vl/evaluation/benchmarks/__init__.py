"""The benchmarks: of each its files, its prompts, how its answers are read and summed up."""
