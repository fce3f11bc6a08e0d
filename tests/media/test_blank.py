"""Blank media against pixels and samples by hand."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from lensplug.media import Sound, Video
from lensplug.media.blank import blank_image, blank_video, muffled, silence


def half_red():
    """The left half red, the right half black; 40 x 20."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 200
    return Image.fromarray(pixels)


def test_grey_says_nothing_of_the_picture():
    assert np.asarray(blank_image(half_red())).tolist() == np.full((20, 40, 3), 128).tolist()


def test_mean_is_the_mean_colour():
    assert np.asarray(blank_image(half_red(), "mean")).tolist() == np.tile([100, 0, 0], (20, 40, 1)).tolist()


def test_blur_leaves_colours_near_their_places_and_no_edge():
    red = np.asarray(blank_image(half_red(), "blur"))[:, :, 0].astype(int)
    assert red.shape == (20, 40)
    assert red[:, 0].min() > red[:, 20].max() > red[:, 39].max() >= 0
    assert abs(np.diff(red, axis=1)).max() < 30  # 200 before


def test_videos_and_sounds_keep_their_size():
    video = Video(torch.randint(0, 255, (2, 4, 6, 3), dtype=torch.uint8))
    assert torch.equal(blank_video(video).frames, torch.full((2, 4, 6, 3), 128, dtype=torch.uint8))
    quiet = silence(Sound(torch.rand(100), 8000))
    assert quiet.sampling_rate == 8000 and quiet.waveform.tolist() == [0.0] * 100


def test_a_video_is_blanked_frame_by_frame():
    frames = torch.stack([torch.from_numpy(np.array(half_red())), torch.from_numpy(np.array(half_red())) // 2])
    video = Video(frames, torch.tensor([0.0, 0.5]))
    for blank in ("mean", "blur"):
        found = blank_video(video, blank)
        assert found.times_s is video.times_s
        for index in range(2):
            assert np.array_equal(found.frames[index].numpy(), np.asarray(blank_image(video.image(index), blank)))


def test_a_muffled_sound_keeps_what_is_low():
    """Tones of whole periods: each keeps a half to the power of (frequency / 300 Hz) squared."""
    seconds = torch.arange(16000, dtype=torch.double) / 16000
    tones = {frequency: 0.2 * torch.sin(2 * torch.pi * frequency * seconds) for frequency in (100, 300, 900)}
    sound = muffled(Sound((tones[100] + tones[300] + tones[900]).float(), 16000))
    expected = tones[100] * 0.5 ** (1 / 9) + tones[300] * 0.5 + tones[900] * 0.5**9
    torch.testing.assert_close(sound.waveform, expected.float(), atol=1e-6, rtol=0)
    assert len(muffled(Sound(torch.rand(101), 8000)).waveform) == 101
