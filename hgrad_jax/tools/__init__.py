"""What every room above uses: trees of arrays, traces, loops, files."""
