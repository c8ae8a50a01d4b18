"""Small trained models that ship with the library."""

from specxai.zoo.digits import CHECKPOINT, DigitsNet, digits_data, load_digits_net
from specxai.zoo.gpt import GPT, load_gpt
from specxai.zoo.words import Words

__all__ = ["CHECKPOINT", "GPT", "DigitsNet", "Words", "digits_data", "load_digits_net", "load_gpt"]
