"""Physical memory: frames and their allocator, leaves, folios, areas, faults."""
