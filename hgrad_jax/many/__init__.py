"""Many at once: devices, processes, batches in parallel, moments of a sweep."""
