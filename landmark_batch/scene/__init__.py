"""Scenes: LandMark checkpoints in (checkpoint, info, identity), out (export), and made up (demo).

weights.SceneWeights is what the rest of the house knows of a scene. checkpoint.load_scene reads one; layout finds its files,
unpickle opens them as data, kwargs and geometry check what they say, assemble and tensors copy, division places the blocks.
"""
