"""Sizes of the smallest BAGEL that has every part: two layers, a ViT, a VAE, and pictures that are not square."""

from dataclasses import replace

from triptych.model.config import SKETCH, AutoencoderConfig, LanguageConfig, Resize, VisionConfig

TINY = replace(
    SKETCH,
    language=LanguageConfig(256, 32, 48, 2, 4, 2, rope_theta=1e4),
    vision=VisionConfig(16, 24, 2, 2, patch_size=16, patches_per_side=8),
    autoencoder=AutoencoderConfig(32, (1, 1, 1, 1), num_res_blocks=1, scale_factor=1.0, shift_factor=0.0),
    max_latent_size=8,
    image_size=(32, 48),
    vae_resize=Resize(64, 32, 16),
    vit_resize=Resize(64, 32, 16),
)
