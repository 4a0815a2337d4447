"""Models of pictures and of sounds of one or two small layers with random weights, as transformers writes them."""

from pathlib import Path


def save_tiny_clip(folder: Path, size: int) -> None:
    """Write a CLIP whose vectors have ``size`` numbers."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 8, "max_position_embeddings": 16, "bos_token_id": 6, "eos_token_id": 7}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size)).save_pretrained(folder)
    letters = {"a": 0, "a</w>": 1, "<|startoftext|>": 6, "<|endoftext|>": 7}
    looks = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(looks, CLIPTokenizer(vocab=letters, merges=[])).save_pretrained(folder)


def save_tiny_clap(folder: Path, size: int) -> None:
    """Write a CLAP whose vectors have ``size`` numbers; its spectra are as large as the published one's."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "projection_dim": size}
    text = {**small, "vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    audio = {**small, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2]}
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=size)).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
