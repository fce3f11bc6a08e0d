"""Patches for TransformerBridge."""
