"""Media fitted to others, against Pillow, soxr and samples by hand."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from PIL import Image

from lensplug.media import Sound, Video
from lensplug.media.fitted import fitted_image, fitted_sound, fitted_video


def picture(width, height):
    values = np.arange(width * height * 3) % 251
    return Image.fromarray(values.astype(np.uint8).reshape(height, width, 3))


def test_a_picture_is_resized_as_a_whole():
    same = picture(8, 6)
    assert fitted_image(same, picture(8, 6)) is same
    expected = picture(30, 20).resize((8, 6), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(fitted_image(picture(30, 20), same)), np.asarray(expected))


def test_frames_are_taken_at_the_same_fractions():
    frames = torch.stack([torch.full((6, 8, 3), 10 * index, dtype=torch.uint8) for index in range(5)])
    like = Video(torch.zeros(3, 4, 4, 3, dtype=torch.uint8), torch.tensor([0.0, 1.0, 2.0]))
    found = fitted_video(Video(frames), like)
    assert found.frames.shape == like.frames.shape and found.times_s is like.times_s
    assert found.frames[:, 0, 0, 0].tolist() == [0, 20, 40]
    short = fitted_video(Video(frames[:2]), Video(torch.zeros(4, 6, 8, 3, dtype=torch.uint8)))
    assert short.frames[:, 0, 0, 0].tolist() == [0, 0, 10, 10]


def test_time_is_not_stretched():
    like = Sound(torch.zeros(100), 8000)
    long, short = torch.rand(160), torch.rand(60)
    assert torch.equal(fitted_sound(Sound(long, 8000), like).waveform, long[:100])
    assert torch.equal(fitted_sound(Sound(short, 8000), like).waveform, torch.cat([short, torch.zeros(40)]))
    faster = fitted_sound(Sound(torch.rand(400), 16000), like)
    assert faster.sampling_rate == 8000 and len(faster.waveform) == 100
    assert np.array_equal(
        fitted_sound(Sound(short, 16000), like).waveform[:30].numpy(), soxr.resample(short.numpy(), 16000, 8000)
    )
