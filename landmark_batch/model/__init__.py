"""From rays to pixels: a LandMark scene, sampled, composited and coloured on any device, with the same bits whatever the way."""
