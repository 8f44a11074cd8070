"""Cameras: files of poses in, flights made here, checks, flights out.

A `Flight` is every camera of a path at the size it is rendered, in scene coordinates, OpenGL axes (x right, y up, looks along −z).

- `formats.load_flight` reads a file, whatever its dialect: transforms.json of LandMark, nerfstudio and instant-ngp (`transforms`),
  camera_path.json of nerfstudio (`camera_path`, with the way back from its normalised space); `formats.inline_flight` takes the
  [[cameras.frame]] tables of a job, `formats.flight_of_job` whichever of them a job names. `records` reads their JSON with errors that
  name the file, the frame and the value; `lenses` brings every frame to one size.
- `check.check_flight` refuses what cannot be rendered: poses that are no rotations, focal 0, a view that misses the scene's box (`view`).
- `paths.interpolate_flight`, `paths.orbit_flight` and `survey.survey_flight` make flights (`splines`, `poses`);
  `write.write_transforms` writes one that `load_flight` reads back bit for bit.
- `rays` turns a pose and a lens into the rays that the model renders.
"""
