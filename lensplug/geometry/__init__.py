"""The place of a token in its medium: pixels of an image or video frame, seconds of a sound.

A family (`lensplug.families`) says how its tiles were cut, or its frames stacked; here is the result and
what can be done with it, the same for every family. Coordinates are pixels of the original image, x to the
right, y downwards, (x0, y0) inclusive and (x1, y1) exclusive, as floats; or seconds of the original waveform.
"""

from lensplug.geometry.audio_timeline import AudioTimeline as AudioTimeline
from lensplug.geometry.image_grid import ImageGrid as ImageGrid
from lensplug.geometry.video_grid import VideoGrid as VideoGrid
