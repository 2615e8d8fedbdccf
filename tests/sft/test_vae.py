"""What the VAE and the decoder learn from."""

import torch

from triptych.data.render import render
from triptych.data.stickers import COLORS
from triptych.model.config import SKETCH
from triptych.model.vae import Autoencoder
from triptych.sft.vae import add_noise, decoder_scenes, few_colors, measure_latents, scenes_of_step, to_unit, vae_scenes


def test_scenes_of_few_colors_are_white_or_half_white_or_of_one_color():
    scenes = [few_colors(seed) for seed in range(300)]
    color_sets = [{sticker.color for sticker in scene.stickers} for scene in scenes]
    single = [next(iter(colors)) for colors in color_sets if len(colors) == 1]
    mixed = [colors for colors in color_sets if len(colors) > 1]
    assert len(single) > 180 and {*single} == {*COLORS}
    assert sum("white" in colors for colors in mixed) > 0.7 * len(mixed)  # a quarter of the pairs has none by chance
    white = sum(color == "white" for color in single) / len(scenes)
    assert 0.3 < white < 0.5  # a third of all, a tenth of the third that is of any color, and small scenes by chance
    assert {len(scene.stickers) for scene in scenes} == set(range(1, 10))


def test_a_share_of_the_scenes_is_of_few_colors():
    usual, mixed = decoder_scenes(0, 300), decoder_scenes(0, 300, few=0.6)
    changed = [seed for seed in range(300) if mixed[seed] != usual[seed]]
    assert 150 < len(changed) < 210 and all(mixed[seed] == few_colors(seed) for seed in changed)


def test_every_second_scene_of_the_vae_is_full_and_steps_share_none():
    scenes = vae_scenes(0, 20)
    assert all(len(scene.stickers) == 9 for scene in scenes[1::2])
    assert {len(scene.stickers) for scene in scenes[::2]} != {9}
    assert scenes_of_step(0, 1, 4) == scenes_of_step(0, 0, 8)[4:] and scenes_of_step(1, 0, 4) != scenes_of_step(0, 0, 4)


def test_measured_latents_have_mean_0_and_deviation_1():
    torch.manual_seed(0)
    weights = Autoencoder(SKETCH.autoencoder).state_dict()
    scenes = scenes_of_step(0, 0, 40)
    model = Autoencoder(measure_latents(SKETCH.autoencoder, weights, scenes))
    model.load_state_dict(weights)
    with torch.no_grad():
        latents = model.encode(to_unit(render(scenes)))
    assert abs(float(latents.mean())) < 1e-3 and abs(float(latents.std()) - 1) < 1e-3


def test_noise_on_latents_is_at_most_its_share_and_differs_by_picture():
    latents = torch.randn(64, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    strength = (add_noise(latents, 0, 0.3) - latents).flatten(1).std(1) / latents.std()
    assert float(strength.max()) < 0.33 and float(strength.min()) < 0.05 and 0.1 < float(strength.mean()) < 0.2
    assert torch.equal(add_noise(latents, 0, 0.0), latents)
