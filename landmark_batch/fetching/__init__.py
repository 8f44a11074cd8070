"""Dynamic fetching: which blocks a flight needs, in which order, and when each is brought to the device.

- `visibility.FrustumBlocks` finds the blocks that a frame can touch (`occupancy_tree`) and about how many samples it has
  (`sample_count`); `flight_blocks.flight_blocks` does so for a whole flight.
"""
