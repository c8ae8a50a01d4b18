"""Small trained models that ship with the library."""

from specxai.zoo.digits import CHECKPOINT, DigitsNet, digits_data, load_digits_net

__all__ = ["CHECKPOINT", "DigitsNet", "digits_data", "load_digits_net"]
