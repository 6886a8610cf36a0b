#!/bin/sh
# Copy the notebooks to the user's home, if they are not there yet. What a learner has written is never touched.
python -c 'from pathlib import Path; from course_utils.lab import fill; fill(Path.home() / "faithful-circuits")'
